package postgres_test

import (
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/deputymesh/deputy/internal/testca"
	"github.com/deputymesh/deputy/internal/testpg"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/postgres"
)

func TestRolesChooseTheAccount(t *testing.T) {
	pg := testpg.Start(t)
	pg.Exec("create role readonly login password 'ro-Pa55'", "grant select on customers to readonly")
	accounts := func(c *postgres.Config) {
		c.Accounts = []postgres.Account{
			{Name: testpg.App, Password: testpg.AppPassword, Roles: []string{"dba"}},
			{Name: "readonly", Password: "ro-Pa55", Roles: []string{"clerk", "analyst"}},
		}
	}
	w := worldOf(t, pg, []string{"clerk"}, accounts)
	cfg := w.config()
	cfg.User = "readonly"
	conn, err := connectWith(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	got, err := table(t.Context(), conn, "select session_user")
	if err != nil || got[0] != "readonly" {
		t.Errorf("%v %v", got, err)
	}
	// What the account itself may not do, policy can't give.
	_, err = table(t.Context(), conn, "select * from orders")
	wantState(t, err, "42501", "permission denied for table orders")
	cfg.User = testpg.App
	_, err = connectWith(t, cfg)
	wantState(t, err, "28000", "account")
	if e := w.ledger.all("decided"); e[0].cmd.Kind != "connect" || e[0].cmd.Account != "readonly" {
		t.Errorf("%+v", e[0].cmd)
	}
}

func TestAWrongUpstreamIsNotTalkedTo(t *testing.T) {
	pg := testpg.Start(t)
	for name, change := range map[string]func(*postgres.Config){
		"another name in the certificate": func(c *postgres.Config) { c.Upstream.ServerName = "other.test" },
		"a wrong password":                func(c *postgres.Config) { c.Accounts[0].Password = "wrong" },
		"nobody there":                    func(c *postgres.Config) { c.Upstream.Address = "127.0.0.1:1" },
		"no certificate asked for": func(c *postgres.Config) {
			c.Accounts[0].Certificate = func() (*tls.Certificate, error) {
				svid := testca.New(t, "clients.test").SVID(spiffeid.RequireFromString("spiffe://clients.test/shop_app"))
				return &tls.Certificate{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}, nil
			}
		},
		"no certificate there": func(c *postgres.Config) {
			c.Accounts[0].Certificate = func() (*tls.Certificate, error) { return nil, errors.New("the file is gone") }
		},
		"a password asked for where there is none": func(c *postgres.Config) {
			c.Accounts[0].Password = ""
			c.Accounts[0].Certificate = func() (*tls.Certificate, error) { return &tls.Certificate{}, nil }
		},
	} {
		w := worldOf(t, pg, []string{"clerk"}, change)
		_, err := connectWith(t, w.config())
		wantState(t, err, "08006", "the target can't be reached")
		if o := w.ledger.outcome(t, ""); o.Status != "error" {
			t.Errorf("%s: outcome %+v", name, o)
		}
	}
	// A server that wants the password in the clear doesn't get it.
	pg.Exec("alter system set password_encryption = 'md5'", "select pg_reload_conf()")
	time.Sleep(300 * time.Millisecond)
	pg.Exec("create role old login password 'md5-Pa55'")
	w := worldOf(t, pg, []string{"clerk"}, func(c *postgres.Config) {
		c.Accounts = []postgres.Account{{Name: "old", Password: "md5-Pa55"}}
	})
	cfg := w.config()
	cfg.User = "old"
	_, err := connectWith(t, cfg)
	wantState(t, err, "08006", "")
}

// TestASlowReaderIsCutOff: an agent that doesn't read holds nothing up once its session is over.
func TestASlowReaderIsCutOff(t *testing.T) {
	w := newWorld(t, []string{"clerk"})
	f := w.frontend()
	f.SendQuery(query("select repeat('x', 1000000) from generate_series(1, 1000)"))
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		return w.pg.Value("select count(*) from pg_stat_activity where wait_event = 'ClientWrite'") == "1"
	})
	start := time.Now()
	w.ledger.last().cancel(&proxy.Ended{Class: proxy.ClassRevoked, Reason: "revoked"})
	waitFor(t, func() bool { return len(w.ledger.all("closed")) == 1 })
	if d := time.Since(start); d > 1500*time.Millisecond {
		t.Errorf("the end took %s", d)
	}
	waitFor(t, func() bool {
		return w.pg.Value("select count(*) from pg_stat_activity where application_name like 'deputy s%'") == "0"
	})
}

func TestAShutdownTellsAgents(t *testing.T) {
	pg := testpg.Start(t)
	w := worldOf(t, pg, []string{"clerk"})
	conn := w.connect()
	w.stop()
	_, err := table(t.Context(), conn, "select 1")
	if code := sqlState(err); err == nil || code != "" && code != "57P01" {
		t.Errorf("%v", err)
	}
}
