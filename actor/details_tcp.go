package actor

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const tcpType = "deputy_tcp"

// TCPVerbs are the actions of a deputy_tcp capability: only the connection is decided, and nothing that is said on it.
func TCPVerbs() []string { return []string{"connect"} }

// TCPDetail is a capability on services whose protocol no engine speaks:
//
//	{"type":"deputy_tcp","locations":["spiffe://…/target/cache"],"actions":["connect"]}
type TCPDetail struct {
	Locations []spiffeid.ID // targets; at least one
	Actions   []string      // of TCPVerbs; at least one
}

// TCPAction is one connection to a service.
type TCPAction struct {
	Target spiffeid.ID
	Verb   string
}

func (a TCPAction) Name() string { return "tcp:" + a.Verb }
func (TCPAction) action()        {}

type tcpJSON struct {
	Type      string    `json:"type"`
	Locations locations `json:"locations"`
	Actions   []string  `json:"actions"`
}

func parseTCP(data []byte) (Detail, error) {
	var j tcpJSON
	if err := strictjson.Unmarshal(data, &j); err != nil {
		return nil, err
	}
	return TCPDetail{Locations: j.Locations, Actions: j.Actions}, nil
}

func (d TCPDetail) MarshalJSON() ([]byte, error) {
	return json.Marshal(tcpJSON{Type: tcpType, Locations: d.Locations, Actions: d.Actions})
}

func (TCPDetail) Type() string             { return tcpType }
func (d TCPDetail) Targets() []spiffeid.ID { return d.Locations }
func (d TCPDetail) validate() error        { return checkPlace(d.Locations, d.Actions, TCPVerbs()) }

func (d TCPDetail) within(parent Detail) error {
	p, ok := parent.(TCPDetail)
	switch {
	case !ok:
		return fmt.Errorf("%s is not %s", d.Type(), parent.Type())
	case !covers(p.Locations, d.Locations):
		return errors.New("locations are wider")
	case !covers(p.Actions, d.Actions):
		return errors.New("actions are wider")
	}
	return nil
}

func (d TCPDetail) match(a Action) (Limits, error) {
	ta, ok := a.(TCPAction)
	switch {
	case !ok:
		return Limits{}, fmt.Errorf("%s is about TCP", d.Type())
	case ta.Target.IsZero() || !contains(d.Locations, ta.Target):
		return Limits{}, fmt.Errorf("target %q is not among the locations", ta.Target)
	case !contains(d.Actions, ta.Verb):
		return Limits{}, fmt.Errorf("%q is not among the actions", ta.Verb)
	}
	return Limits{}, nil
}

func (d TCPDetail) at(target spiffeid.ID) (Detail, bool) {
	if !contains(d.Locations, target) {
		return nil, false
	}
	d.Locations = []spiffeid.ID{target}
	return d, true
}
