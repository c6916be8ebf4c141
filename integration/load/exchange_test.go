//go:build bench

package load_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/testmesh"
)

const (
	exchangeConnections = 16 // at once
	// A broker takes a burst of 40 from one agent, and then 10 a second: so that its limit isn't what is measured, there are many
	// agents, each with a connection that stays open, and 16 of them ask at any time.
	exchangeAgents   = 512
	exchangesInARow  = 30
	exchangeSubjects = 6000
)

// exchanges is the load of agents that exchange chains of depth 3.
type exchanges struct {
	f      *flow
	parent []*x509svid.SVID
	leaves []*x509svid.SVID
	txn    string
	fresh  [][]string // subject tokens of each leaf that nobody has seen yet
	seen   []string   // one of each leaf that is presented over and over
}

// measureExchanges compares the broker with a handler that does the same signatures, paths and one group-committed fdatasync, and
// nothing else.
func measureExchanges(b *bench) {
	f := b.flow()
	x := &exchanges{f: f, txn: actor.NewHexID(), parent: f.agents(2)}
	mid := f.agentID(x.parent[1])
	for range exchangeAgents {
		id, err := mid.Child("leaf", actor.NewHexID())
		b.try(err)
		x.leaves = append(x.leaves, f.ca.SVID(id.ID()))
	}
	user := f.userGrant(x.parent[0], x.txn)
	for _, leaf := range x.leaves {
		x.seen = append(x.seen, x.subject(leaf, user))
	}
	type server struct {
		url     string
		pid     int
		clients []*http.Client
	}
	start := func(kind string) server {
		address := fmt.Sprintf("127.0.0.1:%d", testmesh.FreePorts(b.t, 1))
		config := bytes.NewReader(f.json(f.exchangeConfig(kind, address)))
		self, err := os.Executable()
		b.try(err)
		s := server{url: "https://" + address, pid: b.serveAs(nil, config, address, self, exchangeArg)}
		for _, leaf := range x.leaves {
			cfg := tlsconfig.MTLSClientConfig(leaf, f.ca.Bundle(), tlsconfig.AuthorizeID(f.ca.ID("/deputy/broker")))
			cfg.MinVersion = tls.VersionTLS13
			transport := &http.Transport{TLSClientConfig: cfg, MaxIdleConnsPerHost: 1}
			b.t.Cleanup(transport.CloseIdleConnections)
			s.clients = append(s.clients, &http.Client{Transport: transport, Timeout: 20 * time.Second})
		}
		return s
	}
	broker, every, cached := start(kindBroker), start(kindBareEvery), start(kindBareCached)
	spent := map[string][]float64{}
	run := func(name string, s server, fresh bool) func() float64 {
		return func() float64 {
			if fresh {
				x.makeFresh()
			}
			for _, c := range s.clients {
				x.warm(c, s.url)
			}
			defer b.profiled(route{pid: s.pid, ours: true}, "exchange-"+name)()
			before := b.processorTime(s.pid)
			n, took := x.load(s.url, s.clients, fresh)
			spent[name] = append(spent[name], float64((b.processorTime(s.pid)-before).Microseconds())/float64(n))
			return float64(n) / took.Seconds()
		}
	}
	got := b.sideBySide("exchanges/s", []subject{
		{"fresh", run("fresh", broker, true)},
		{"bare handler, every signature", run("bare handler, every signature", every, true)},
		{"re-presented", run("re-presented", broker, false)},
		{"bare handler, signatures known", run("bare handler, signatures known", cached, false)},
	})
	for _, pair := range [][2]string{{"fresh", "bare handler, every signature"}, {"re-presented", "bare handler, signatures known"}} {
		params := map[string]string{"chains": pair[0], "depth": "3", "connections": "16"}
		b.compare(result{Name: "exchange", Unit: "/s", Params: params, aim: "≥ 0.50"}, got, pair[0], pair[1])
		b.compare(result{Name: "exchange, processor time", Unit: "µs", Params: params}, spent, pair[0], pair[1])
	}
}

func (x *exchanges) subject(leaf *x509svid.SVID, userGrant string) string {
	grants := x.f.grants(append(append([]*x509svid.SVID{}, x.parent...), leaf), userGrant)
	return actor.JoinSubject(grants, x.f.idToken)
}

// makeFresh signs chains that share nothing but the sign-in.
func (x *exchanges) makeFresh() {
	x.fresh = make([][]string, len(x.leaves))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(x.leaves) {
					return
				}
				for range exchangeSubjects / len(x.leaves) {
					x.fresh[i] = append(x.fresh[i], x.subject(x.leaves[i], x.f.userGrant(x.parent[0], x.txn)))
				}
			}
		})
	}
	wg.Wait()
}

// warm opens the connection.
func (x *exchanges) warm(c *http.Client, base string) {
	resp, err := c.Get(base + "/jwks")
	x.f.b.try(err)
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

// load exchanges for a while, or until the fresh chains run out.
func (x *exchanges) load(base string, clients []*http.Client, fresh bool) (n int, took time.Duration) {
	var done atomic.Int64
	var failed atomic.Pointer[string]
	var wg sync.WaitGroup
	start := time.Now()
	end := start.Add(2 * x.f.b.slice())
	for c := range exchangeConnections {
		wg.Go(func() {
			mine := exchangeAgents / exchangeConnections
			for turn := range 10 * mine {
				i := c*mine + turn%mine
				for k := range exchangesInARow {
					subject := x.seen[i]
					if fresh {
						if k += turn / mine * exchangesInARow; k >= len(x.fresh[i]) {
							break
						}
						subject = x.fresh[i][k]
					}
					if why := x.exchange(clients[i], base, subject); why != "" {
						failed.Store(&why)
						return
					}
					done.Add(1)
					if !time.Now().Before(end) {
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if why := failed.Load(); why != nil {
		x.f.b.t.Fatalf("an exchange failed: %s", *why)
	}
	return int(done.Load()), time.Since(start)
}

func (x *exchanges) exchange(c *http.Client, base, subject string) (why string) {
	form := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {subject},
		"subject_token_type": {"urn:deputy:token-type:grants"}, "resource": {x.f.target.ID(x.f.ca.TrustDomain()).String()},
	}
	resp, err := c.Post(base+"/token", "application/x-www-form-urlencoded", strings.NewReader(form.Encode()))
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	var answer struct {
		Token string `json:"access_token"`
	}
	if err != nil || resp.StatusCode != http.StatusOK || json.Unmarshal(raw, &answer) != nil || answer.Token == "" {
		return fmt.Sprintf("HTTP %d %s %v", resp.StatusCode, raw, err)
	}
	return ""
}

// exchangeConfig is what a server needs, as a message to its process.
func (f *flow) exchangeConfig(kind, address string) exchangeConfig {
	b := f.b
	b.t.Helper()
	dir, err := os.MkdirTemp(b.dir, "exchange-")
	b.try(err)
	c := exchangeConfig{Kind: kind, Listen: address, Dir: dir, Provider: f.provider.URL, Target: f.target.String(),
		ProviderCert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.provider.Certificate().Raw})}
	c.SVID, c.SVIDKey, err = f.ca.SVID(f.ca.ID("/deputy/broker")).Marshal()
	b.try(err)
	c.Bundle, err = f.ca.Bundle().Marshal()
	b.try(err)
	c.TokenKey, err = marshalKey(f.tokenKey)
	b.try(err)
	c.Statement, err = actor.SignKeyStatement(f.certifying, f.keyStatement())
	b.try(err)
	c.Certifying, err = marshalPublic(&f.certifying.PublicKey)
	b.try(err)
	c.ProviderKey, err = marshalPublic(&f.providerKey.PublicKey)
	b.try(err)
	return c
}
