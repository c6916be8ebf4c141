package feed_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/internal/feed"
	"github.com/deputymesh/deputy/internal/target"
	feedv1 "github.com/deputymesh/deputy/proto/deputy/feed/v1"
)

const (
	planner    = "spiffe://corp.example/agent/planner/0123456789abcdef0123456789abcdef"
	researcher = planner + "/researcher/0123456789abcdef0123456789abcdef"
)

func targets(t testing.TB, names ...string) []target.Name {
	t.Helper()
	var out []target.Name
	for _, s := range names {
		n, err := target.ParseName(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

func all() feed.Update {
	at := time.Date(2026, 11, 23, 7, 0, 0, 123456789, time.UTC)
	u := feed.Update{Revision: 7, SentAt: at, Kind: feed.Snapshot, Changes: feed.Changes{
		TokenKeyStatements: []string{"a.b.c"}, PolicySet: "d.e.f", Ended: []feed.EndedAgent{{ID: planner, EndedAt: at}},
	}}
	for i, m := range []feed.Match{
		{Kind: feed.User, Issuer: "https://idp.example", Value: "alice"}, {Kind: feed.Session, Value: "sid"}, {Kind: feed.Task, Value: "txn"},
		{Kind: feed.Agent, Value: planner}, {Kind: feed.Edge, Value: planner, Delegate: researcher},
		{Kind: feed.Edge, Value: "https://idp.example#alice", Delegate: planner},
		{Kind: feed.Grant, Issuer: planner, Value: "jti"}, {Kind: feed.Target, Value: "orders-db"},
	} {
		u.Revocations = append(u.Revocations, feed.Revocation{ID: string(rune('a' + i)), Of: m, IssuedAt: at, ExpiresAt: at.Add(time.Hour), Reason: "why"})
	}
	return u
}

func TestUpdatesComeBackAsTheyWere(t *testing.T) {
	for _, kind := range []feed.MessageKind{feed.Snapshot, feed.Delta} {
		want := all()
		want.Kind = kind
		raw, err := proto.Marshal(feed.UpdateToProto(want))
		if err != nil {
			t.Fatal(err)
		}
		var p feedv1.BrokerMessage
		if err := proto.Unmarshal(raw, &p); err != nil {
			t.Fatal(err)
		}
		got, err := feed.UpdateFromProto(&p)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	beat := feed.Update{Revision: 3, SentAt: time.Unix(5, 0).UTC(), Kind: feed.Heartbeat}
	if got, err := feed.UpdateFromProto(feed.UpdateToProto(beat)); err != nil || cmp.Diff(beat, got) != "" {
		t.Errorf("heartbeat: %+v %v", got, err)
	}
	for _, want := range []feed.ProxyMessage{
		{Hello: &feed.Hello{Targets: targets(t, "orders-db", "crm"), Revision: 3, PolicyVersion: 4}}, {Ack: &feed.Ack{Revision: 8, SessionsEnded: 2}},
	} {
		got, err := feed.ProxyMessageFromProto(feed.ProxyMessageToProto(want))
		if err != nil || cmp.Diff(want, got, cmp.Comparer(func(a, b target.Name) bool { return a == b })) != "" {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
	}
}

func TestWhatIsNotUnderstoodIsRefused(t *testing.T) {
	unknown := func(m proto.Message) {
		m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	}
	for name, change := range map[string]func(*feedv1.BrokerMessage){
		"nothing":                    func(m *feedv1.BrokerMessage) { m.Message = nil },
		"no time":                    func(m *feedv1.BrokerMessage) { m.SentAt = nil },
		"unknown field":              func(m *feedv1.BrokerMessage) { unknown(m) },
		"unknown field in a list":    func(m *feedv1.BrokerMessage) { unknown(m.GetSnapshot().GetRevocations()[2]) },
		"unknown field deep":         func(m *feedv1.BrokerMessage) { unknown(m.GetSnapshot().GetRevocations()[4].GetEdge()) },
		"unknown kind of revocation": func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetRevocations()[0].Of = nil },
		"revocation without id":      func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetRevocations()[0].Id = "" },
		"revocation without end":     func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetRevocations()[0].ExpiresAt = nil },
		"impossible time": func(m *feedv1.BrokerMessage) {
			m.GetSnapshot().GetRevocations()[0].IssuedAt = &timestamppb.Timestamp{Nanos: -1}
		},
		"user without issuer": func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetRevocations()[0].GetUser().Iss = "" },
		"empty session":       func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetRevocations()[1].Of = &feedv1.Revocation_Session{} },
		"a role as agent": func(m *feedv1.BrokerMessage) {
			m.GetSnapshot().GetRevocations()[3].Of = &feedv1.Revocation_Agent{Agent: "spiffe://corp.example/deputy/broker"}
		},
		"agent in another spelling": func(m *feedv1.BrokerMessage) {
			m.GetSnapshot().GetRevocations()[3].Of = &feedv1.Revocation_Agent{Agent: "SPIFFE" + planner[6:]}
		},
		"edge without delegate": func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetRevocations()[4].GetEdge().Delegate = "" },
		"target that is none": func(m *feedv1.BrokerMessage) {
			m.GetSnapshot().GetRevocations()[7].Of = &feedv1.Revocation_Target{Target: "../x"}
		},
		"ended agent that is none": func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetEndedAgents()[0].SpiffeId = "x" },
		"ended agent without time": func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetEndedAgents()[0].EndedAt = nil },
		"empty token key":          func(m *feedv1.BrokerMessage) { m.GetSnapshot().TokenKeyStatements = []string{""} },
		"many token keys":          func(m *feedv1.BrokerMessage) { m.GetSnapshot().TokenKeyStatements = make([]string, 17) },
		"a token key that is a novel": func(m *feedv1.BrokerMessage) {
			m.GetSnapshot().TokenKeyStatements = []string{strings.Repeat("a", 17<<10)}
		},
		"a reason that is a novel": func(m *feedv1.BrokerMessage) { m.GetSnapshot().GetRevocations()[0].Reason = strings.Repeat("a", 2000) },
	} {
		m := feed.UpdateToProto(all())
		change(m)
		if got, err := feed.UpdateFromProto(m); err == nil {
			t.Errorf("%s: became %+v", name, got)
		}
	}
	for name, m := range map[string]*feedv1.ProxyMessage{
		"nil":        nil,
		"nothing":    {},
		"no targets": {Message: &feedv1.ProxyMessage_Hello{Hello: &feedv1.Hello{}}},
		"no name":    {Message: &feedv1.ProxyMessage_Hello{Hello: &feedv1.Hello{Targets: []string{""}}}},
		"twice":      {Message: &feedv1.ProxyMessage_Hello{Hello: &feedv1.Hello{Targets: []string{"a", "a"}}}},
		"many":       {Message: &feedv1.ProxyMessage_Hello{Hello: &feedv1.Hello{Targets: make([]string, 2000)}}},
	} {
		if got, err := feed.ProxyMessageFromProto(m); err == nil {
			t.Errorf("%s: became %+v", name, got)
		}
	}
}

// Each name under which a chain can be revoked leads to the revocation that an operator would write.
func TestMatchOfIsWhatOperatorsWrite(t *testing.T) {
	must := func(m feed.Match, err error) feed.Match {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for k, want := range map[actor.RevocationKey]feed.Match{
		{Kind: actor.RevokeSubject, Issuer: "https://idp.example", Value: "alice"}:    must(feed.MatchUser("https://idp.example", "alice")),
		{Kind: actor.RevokeSession, Issuer: "https://idp.example", Value: "sid"}:      must(feed.MatchSession("sid")),
		{Kind: actor.RevokeTxn, Value: "txn"}:                                         must(feed.MatchTask("txn")),
		{Kind: actor.RevokeActor, Value: planner}:                                     must(feed.MatchAgent(planner)),
		{Kind: actor.RevokeEdge, Issuer: planner, Value: researcher}:                  must(feed.MatchEdge(planner, researcher)),
		{Kind: actor.RevokeEdge, Issuer: "https://idp.example#alice", Value: planner}: must(feed.MatchEdge("https://idp.example#alice", planner)),
		{Kind: actor.RevokeStatement, Issuer: planner, Value: "jti"}:                  must(feed.MatchGrant(planner, "jti")),
		{Kind: actor.RevokeTarget, Value: "spiffe://corp.example/target/orders-db"}:   must(feed.MatchTarget("orders-db")),
	} {
		if got := feed.MatchOf(k); got != want {
			t.Errorf("%v became %v, want %v", k, got, want)
		}
	}
	if feed.MatchOf(actor.RevocationKey{Kind: "new", Value: "x"}).Check() == nil {
		t.Error("a kind that isn't known can be written down")
	}
}

func FuzzUpdateFromProto(f *testing.F) {
	raw, err := proto.Marshal(feed.UpdateToProto(all()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p feedv1.BrokerMessage
		if proto.Unmarshal(raw, &p) != nil {
			return
		}
		u, err := feed.UpdateFromProto(&p)
		if err != nil {
			return
		}
		for _, r := range u.Revocations {
			if err := r.Of.Check(); err != nil {
				t.Errorf("%+v was taken: %v", r, err)
			}
		}
		again, err := feed.UpdateFromProto(feed.UpdateToProto(u))
		if err != nil || cmp.Diff(u, again) != "" {
			t.Errorf("it doesn't come back: %v", err)
		}
	})
}

func FuzzProxyMessageFromProto(f *testing.F) {
	raw, err := proto.Marshal(feed.ProxyMessageToProto(feed.ProxyMessage{Hello: &feed.Hello{Targets: targets(f, "orders-db")}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p feedv1.ProxyMessage
		if proto.Unmarshal(raw, &p) != nil {
			return
		}
		if m, err := feed.ProxyMessageFromProto(&p); err == nil && (m.Hello == nil) == (m.Ack == nil) {
			t.Errorf("%+v", m)
		}
	})
}
