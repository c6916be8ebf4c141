package actor_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/deputymesh/deputy/actor"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

type narrowingFile struct {
	Description string            `json:"description"`
	Vectors     []narrowingVector `json:"vectors"`
}

type narrowingVector struct {
	Name   string          `json:"name"`
	Parent json.RawMessage `json:"parent"`
	Child  json.RawMessage `json:"child"`
	Class  string          `json:"class,omitempty"` // "" for a child that lies within
}

type matchingFile struct {
	Description string         `json:"description"`
	Details     []namedDetails `json:"details"`
	Actions     []namedAction  `json:"actions"`
	Matrix      []matrixCell   `json:"matrix"`
}

type namedDetails struct {
	Name    string          `json:"name"`
	Details json.RawMessage `json:"authorization_details"`
}

type namedAction struct {
	Name   string       `json:"name"`
	Action vectorAction `json:"action"`
}

type vectorAction struct {
	Type     string `json:"type"`
	Target   string `json:"target"`
	Verb     string `json:"verb"`
	Account  string `json:"account,omitempty"` // these two of deputy_ssh
	Object   string `json:"object,omitempty"`
	Database string `json:"database,omitempty"`
	Schema   string `json:"schema,omitempty"`
	Table    string `json:"table,omitempty"`
	*KubeVector
}

type matrixCell struct {
	Details string `json:"details"`
	Action  string `json:"action"`
	In      bool   `json:"in"`
	MaxRows int64  `json:"max_rows,omitempty"`
}

// pg makes one object; tables and databases of nil are left out.
func pg(actions, databases, tables []string, maxRows int) map[string]any {
	d := map[string]any{"type": "deputy_postgres", "locations": []string{target.String()}, "actions": actions}
	if databases != nil {
		d["databases"] = databases
	}
	if tables != nil {
		d["tables"] = tables
	}
	if maxRows != 0 {
		d["max_rows"] = maxRows
	}
	return d
}

// sshCap makes one object out of pairs of a member and its list.
func sshCap(actions []string, members ...any) map[string]any {
	d := map[string]any{"type": "deputy_ssh", "locations": []string{target.String()}, "actions": actions}
	for i := 0; i < len(members); i += 2 {
		d[members[i].(string)] = members[i+1]
	}
	return d
}

type strs = []string

func narrowingCases() []struct {
	name          string
	parent, child []any
	class         actor.Class
} {
	wide := pg(strs{"select", "insert"}, nil, nil, 0)
	tight := pg(strs{"select", "insert"}, strs{"a", "b"}, strs{"s.*", "*.t"}, 100)
	anyHost := sshCap(strs{"exec", "subsystem", "forward", "sftp-read"})
	host := sshCap(strs{"exec", "subsystem", "forward", "sftp-read"}, "accounts", strs{"web", "db"}, "commands", strs{"uptime", "df -h | head"},
		"programs", strs{"git", "/usr/bin/rsync"}, "subsystems", strs{"netconf"}, "paths", strs{"/srv/*", "/etc/hosts"}, "forwards", strs{"db:5432", "/run/x.sock"})
	with := func(m map[string]any, name string, v any) map[string]any {
		out := map[string]any{}
		for k, x := range m {
			out[k] = x
		}
		if v == nil {
			delete(out, name)
		} else {
			out[name] = v
		}
		return out
	}
	one := func(m map[string]any) []any { return []any{m} }
	const wider = actor.ClassWider
	cases := []struct {
		name          string
		parent, child []any
		class         actor.Class
	}{
		{"the same", one(tight), one(tight), ""},
		{"constraints where there were none", one(wide), one(tight), ""},
		{"fewer of each", one(tight), one(pg(strs{"select"}, strs{"b"}, strs{"s.x"}, 1)), ""},
		{"a pattern inside a pattern", one(tight), one(with(tight, "tables", strs{"s.t", "x.t"})), ""},
		{"the same object twice", one(tight), []any{tight, with(tight, "max_rows", 5)}, ""},
		{"fewer objects", []any{wide, tight}, one(tight), ""},
		{"no constraint any more", one(tight), one(wide), wider},
		{"another action", one(tight), one(with(tight, "actions", strs{"delete"})), wider},
		{"one more action", one(tight), one(with(tight, "actions", strs{"select", "insert", "delete"})), wider},
		{"another target", one(tight), one(with(tight, "locations", strs{otherTarget.String()})), wider},
		{"the same name in another trust domain", one(tight), one(with(tight, "locations", strs{"spiffe://evil.example/target/orders"})), wider},
		{"databases missing", one(tight), one(with(tight, "databases", nil)), wider},
		{"database in other case", one(tight), one(with(tight, "databases", strs{"A"})), wider},
		{"tables missing", one(tight), one(with(tight, "tables", nil)), wider},
		{"star for the table", one(with(tight, "tables", strs{"s.x"})), one(with(tight, "tables", strs{"s.*"})), wider},
		{"star for the schema", one(with(tight, "tables", strs{"s.x"})), one(with(tight, "tables", strs{"*.x"})), wider},
		{"two stars under one of each", one(tight), one(with(tight, "tables", strs{"*.*"})), wider},
		{"prefix of a schema is another schema", one(with(tight, "tables", strs{"s.*"})), one(with(tight, "tables", strs{"ss.x"})), wider},
		{"max_rows missing", one(tight), one(with(tight, "max_rows", nil)), wider},
		{"max_rows greater", one(tight), one(with(tight, "max_rows", 101)), wider},
		{"one object out of parts of two", []any{with(wide, "actions", strs{"select"}), with(wide, "actions", strs{"insert"})}, one(wide), wider},
		{"a second object outside", one(tight), []any{tight, wide}, wider},

		{"ssh: the same", one(host), one(host), ""},
		{"ssh: constraints where there were none", one(anyHost), one(host), ""},
		{"ssh: fewer of each", one(host), one(sshCap(strs{"exec"}, "accounts", strs{"web"}, "commands", strs{"uptime"}, "subsystems", strs{"netconf"}, "paths", strs{"/srv/x"}, "forwards", strs{"db:5432"})), ""},
		{"ssh: a command of a program", one(host), one(with(host, "commands", strs{"git status"})), ""},
		{"ssh: programs alone", one(host), one(with(host, "commands", nil)), ""},
		{"ssh: a pattern below a pattern", one(host), one(with(host, "paths", strs{"/srv/a/b/*", "/srv/*"})), ""},
		{"ssh: no constraint any more", one(host), one(anyHost), wider},
		{"ssh: another action", one(host), one(with(host, "actions", strs{"shell"})), wider},
		{"ssh: another target", one(host), one(with(host, "locations", strs{otherTarget.String()})), wider},
		{"ssh: accounts missing", one(host), one(with(host, "accounts", nil)), wider},
		{"ssh: another account", one(host), one(with(host, "accounts", strs{"root"})), wider},
		{"ssh: commands and programs missing", one(host), one(with(with(host, "commands", nil), "programs", nil)), wider},
		{"ssh: another command", one(host), one(with(host, "commands", strs{"uptime -p"})), wider},
		{"ssh: a command of a program that isn't plain", one(host), one(with(host, "commands", strs{"git status; id"})), wider},
		{"ssh: a program out of a command", one(host), one(with(host, "programs", strs{"uptime"})), wider},
		{"ssh: another path to a program", one(host), one(with(host, "programs", strs{"/tmp/git"})), wider},
		{"ssh: subsystems missing", one(host), one(with(host, "subsystems", nil)), wider},
		{"ssh: paths missing", one(host), one(with(host, "paths", nil)), wider},
		{"ssh: the folder above a pattern", one(host), one(with(host, "paths", strs{"/srv"})), wider},
		{"ssh: a folder with the same beginning", one(host), one(with(host, "paths", strs{"/srvx/*"})), wider},
		{"ssh: everything", one(host), one(with(host, "paths", strs{"/*"})), wider},
		{"ssh: below an exact path", one(host), one(with(host, "paths", strs{"/etc/hosts/*"})), wider},
		{"ssh: forwards missing", one(host), one(with(host, "forwards", nil)), wider},
		{"ssh: another port", one(host), one(with(host, "forwards", strs{"db:543"})), wider},
		{"ssh within postgres", one(wide), one(anyHost), wider},
		{"postgres within ssh", one(anyHost), one(wide), wider},
	}
	for _, c := range kubeNarrowing() {
		cases = append(cases, struct {
			name          string
			parent, child []any
			class         actor.Class
		}{c.name, one(c.parent), one(c.child), c.class})
	}
	return cases
}

func matchingCases() ([]namedDetails, []namedAction) {
	details := func(name string, d ...any) namedDetails { return namedDetails{name, must(json.Marshal(d))} }
	act := func(name, verb, db, schema, table string) namedAction {
		return namedAction{name, vectorAction{Type: "deputy_postgres", Target: target.String(), Verb: verb, Database: db, Schema: schema, Table: table}}
	}
	ssh := func(name, verb, account, object string) namedAction {
		return namedAction{name, vectorAction{Type: "deputy_ssh", Target: target.String(), Verb: verb, Account: account, Object: object}}
	}
	elsewhere := act("select elsewhere", "select", "orders", "sales", "orders")
	elsewhere.Action.Target = otherTarget.String()
	return []namedDetails{
			details("anything readable", pg(strs{"select"}, nil, nil, 0)),
			details("one schema, 100 rows", pg(strs{"select", "insert"}, strs{"orders"}, strs{"sales.*"}, 100)),
			details("one table", pg(strs{"select", "update", "call", "ddl", "set"}, strs{"orders"}, strs{"sales.orders"}, 0)),
			details("orders in any schema", pg(strs{"select", "delete"}, strs{"orders"}, strs{"*.orders"}, 0)),
			details("schema changes", pg(strs{"ddl", "admin", "truncate", "copy", "lock", "listen"}, strs{"orders"}, nil, 0)),
			details("two objects, two limits", pg(strs{"select"}, strs{"orders"}, strs{"sales.*"}, 10), pg(strs{"select"}, strs{"orders"}, strs{"sales.orders"}, 1000)),
			details("two objects, one without a limit", pg(strs{"select"}, strs{"orders"}, strs{"*.*"}, 10), pg(strs{"select"}, strs{"orders"}, strs{"sales.orders"}, 0)),
			details("any command", sshCap(strs{"exec", "shell", "subsystem"})),
			details("some commands", sshCap(strs{"exec", "shell", "subsystem"}, "accounts", strs{"web"}, "commands", strs{"uptime", "df -h | head"}, "programs", strs{"git"})),
			details("files", sshCap(strs{"sftp-read", "sftp-list"}, "accounts", strs{"web"}, "paths", strs{"/srv/*", "/etc/hosts"})),
			details("ways through", sshCap(strs{"forward", "subsystem"}, "forwards", strs{"db:5432", "/run/x.sock"}, "subsystems", strs{"netconf"})),
		}, []namedAction{
			act("select sales.orders", "select", "orders", "sales", "orders"),
			act("select sales.items", "select", "orders", "sales", "items"),
			act("select hr.orders", "select", "orders", "hr", "orders"),
			act("select in another database", "select", "hr", "sales", "orders"),
			elsewhere,
			act("select without a table", "select", "orders", "", ""),
			act("select in other case", "select", "orders", "Sales", "orders"),
			act("select of a dotted name", "select", "orders", "sales", "a.b"),
			act("select of a table called *", "select", "orders", "sales", "*"),
			act("insert sales.items", "insert", "orders", "sales", "items"),
			act("update sales.orders", "update", "orders", "sales", "orders"),
			act("delete sales.orders", "delete", "orders", "sales", "orders"),
			act("truncate sales.orders", "truncate", "orders", "sales", "orders"),
			act("copy sales.orders", "copy", "orders", "sales", "orders"),
			act("lock sales.orders", "lock", "orders", "sales", "orders"),
			act("ddl on sales.orders", "ddl", "orders", "sales", "orders"),
			act("ddl on the schema sales", "ddl", "orders", "sales", ""),
			act("ddl on the database", "ddl", "orders", "", ""),
			act("admin of the database", "admin", "orders", "", ""),
			act("set", "set", "orders", "", ""),
			act("call sales.orders", "call", "orders", "sales", "orders"),
			act("call sales.refund", "call", "orders", "sales", "refund"),
			act("call of something unnamed", "call", "orders", "", ""),
			act("listen", "listen", "orders", "", ""),
			act("unknown verb", "explode", "orders", "sales", "orders"),
			act("no database", "select", "", "sales", "orders"),
			act("table without schema", "select", "orders", "", "orders"),
			ssh("exec uptime", "exec", "web", "uptime"),
			ssh("exec uptime as root", "exec", "root", "uptime"),
			ssh("exec uptime with an argument", "exec", "web", "uptime -p"),
			ssh("exec a pipeline", "exec", "web", "df -h | head"),
			ssh("exec git", "exec", "web", "git log --max-count=1"),
			ssh("exec git and more", "exec", "web", "git log; id"),
			ssh("exec git in a substitution", "exec", "web", "git log $(id)"),
			ssh("exec git on a second line", "exec", "web", "git log\nid"),
			ssh("exec another git", "exec", "web", "/tmp/git log"),
			ssh("exec git with two spaces", "exec", "web", "git  log"),
			ssh("exec git with a variable", "exec", "web", "X=1 git log"),
			ssh("exec nothing", "exec", "web", ""),
			ssh("exec without an account", "exec", "", "uptime"),
			ssh("shell", "shell", "web", ""),
			ssh("shell with a command", "shell", "web", "uptime"),
			ssh("subsystem netconf", "subsystem", "web", "netconf"),
			ssh("subsystem other", "subsystem", "web", "other"),
			ssh("read below", "sftp-read", "web", "/srv/a/b"),
			ssh("read the folder itself", "sftp-read", "web", "/srv"),
			ssh("read an exact path", "sftp-read", "web", "/etc/hosts"),
			ssh("read below an exact path", "sftp-read", "web", "/etc/hosts/x"),
			ssh("read out of the folder", "sftp-read", "web", "/srv/../etc/shadow"),
			ssh("read with a double slash", "sftp-read", "web", "/srv//x"),
			ssh("read a relative path", "sftp-read", "web", "srv/x"),
			ssh("read what is called *", "sftp-read", "web", "/srv/*"),
			ssh("write below", "sftp-write", "web", "/srv/a"),
			ssh("forward to db", "forward", "web", "db:5432"),
			ssh("forward to another port", "forward", "web", "db:22"),
			ssh("forward to a socket", "forward", "web", "/run/x.sock"),
			ssh("unknown ssh verb", "explode", "web", "x"),
		}
}

func (a vectorAction) action() actor.Action {
	if a.Type == "deputy_kube" {
		var v KubeVector
		if a.KubeVector != nil {
			v = *a.KubeVector
		}
		return v.kube(must(spiffeid.FromString(a.Target)), a.Verb)
	}
	if a.Type == "deputy_ssh" {
		return actor.SSHAction{Target: must(spiffeid.FromString(a.Target)), Verb: a.Verb, Account: a.Account, Object: a.Object}
	}
	return actor.PostgresAction{Target: must(spiffeid.FromString(a.Target)), Verb: a.Verb, Database: a.Database, Schema: a.Schema, Table: a.Table}
}

func cell(d namedDetails, a namedAction) matrixCell {
	limits, err := must(actor.ParseDetails(d.Details)).Match(a.Action.action())
	return matrixCell{d.Name, a.Name, err == nil, limits.MaxRows}
}

func detailsVectors() (narrowingFile, matchingFile) {
	n := narrowingFile{Description: "Is child within parent? The class details.wider is a refusal."}
	for _, c := range narrowingCases() {
		n.Vectors = append(n.Vectors, narrowingVector{c.name, must(json.Marshal(c.parent)), must(json.Marshal(c.child)), string(c.class)})
	}
	m := matchingFile{Description: "Is the action within the details, and how many rows may it give back (0: no limit)? Every pair is listed."}
	m.Details, m.Actions = matchingCases()
	details, actions := kubeMatching()
	m.Details, m.Actions = append(m.Details, details...), append(m.Actions, actions...)
	for _, d := range m.Details {
		for _, a := range m.Actions {
			m.Matrix = append(m.Matrix, cell(d, a))
		}
	}
	return n, m
}

func TestEveryNarrowingVectorIsJudgedAsItSays(t *testing.T) {
	for _, vec := range readVectors[narrowingFile](t, "narrowing.json").Vectors {
		t.Run(vec.Name, func(t *testing.T) {
			parent, child := must(actor.ParseDetails(vec.Parent)), must(actor.ParseDetails(vec.Child))
			err := child.Within(parent)
			if vec.Class == "" && err != nil {
				t.Error(err)
			}
			if vec.Class != "" {
				checkRefusal(t, err, vec.Class, nil)
			}
		})
	}
}

// inside is written down by hand: the matrix in the file comes from the code, and
// would follow its mistakes.
var inside = map[string]string{
	"anything readable": "select sales.orders|select sales.items|select hr.orders|select in another database|select without a table|" +
		"select in other case|select of a dotted name|select of a table called *",
	"one schema, 100 rows":    "select sales.orders|select sales.items|select without a table|select of a dotted name|select of a table called *|insert sales.items",
	"one table":               "select sales.orders|select without a table|update sales.orders|ddl on sales.orders|set|call sales.orders",
	"orders in any schema":    "select sales.orders|select hr.orders|select in other case|select without a table|delete sales.orders",
	"schema changes":          "truncate sales.orders|copy sales.orders|lock sales.orders|ddl on sales.orders|ddl on the schema sales|ddl on the database|admin of the database|listen",
	"two objects, two limits": "select sales.orders|select sales.items|select without a table|select of a dotted name|select of a table called *",
	"any command": "exec uptime|exec uptime as root|exec uptime with an argument|exec a pipeline|exec git|exec git and more|exec git in a substitution|" +
		"exec git on a second line|exec another git|exec git with two spaces|exec git with a variable|shell|subsystem netconf|subsystem other",
	"some commands": "exec uptime|exec a pipeline|exec git",
	"files":         "read below|read an exact path|read what is called *",
	"ways through":  "forward to db|forward to a socket|subsystem netconf",
	"two objects, one without a limit": "select sales.orders|select sales.items|select hr.orders|select without a table|" +
		"select in other case|select of a dotted name|select of a table called *",
}

func TestEveryActionIsInOrOutAsTheMatrixSays(t *testing.T) {
	file := readVectors[matchingFile](t, "matching.json")
	details, actions := map[string]namedDetails{}, map[string]namedAction{}
	for _, d := range file.Details {
		details[d.Name] = d
	}
	for _, a := range file.Actions {
		actions[a.Name] = a
	}
	if len(file.Matrix) != len(details)*len(actions) {
		t.Errorf("%d cells for %d details and %d actions", len(file.Matrix), len(details), len(actions))
	}
	limits := map[string]int64{}
	for _, want := range file.Matrix {
		got := cell(details[want.Details], actions[want.Action])
		if got != want {
			t.Errorf("%s, %s: got %+v, want %+v", want.Details, want.Action, got, want)
		}
		table, ok := inside[want.Details]
		if !ok {
			table = insideKube[want.Details]
		}
		if byHand := slices.Contains(strings.Split(table, "|"), want.Action); byHand != want.In {
			t.Errorf("%s, %s: the file says %v, the table in this test %v", want.Details, want.Action, want.In, byHand)
		}
		limits[want.Details+"/"+want.Action] = want.MaxRows
	}
	for name, want := range map[string]int64{
		"one schema, 100 rows/select sales.orders": 100, "two objects, two limits/select sales.orders": 1000,
		"two objects, two limits/select sales.items": 10, "two objects, one without a limit/select sales.orders": 0,
	} {
		if limits[name] != want {
			t.Errorf("%s: limit %d, want %d", name, limits[name], want)
		}
	}
}

func TestARefusedActionHasItsClass(t *testing.T) {
	d := must(actor.ParseDetails(must(json.Marshal([]any{pg(strs{"select"}, nil, nil, 0)}))))
	for _, a := range []actor.Action{nil, actor.PostgresAction{}, actor.PostgresAction{Target: target, Verb: "delete", Database: "d"}} {
		if _, err := d.Match(a); actor.ClassOf(err) != actor.ClassOutside {
			t.Errorf("%v: %v", a, err)
		}
	}
	if _, err := (actor.Details)(nil).Match(actor.PostgresAction{Target: target, Verb: "select", Database: "d"}); actor.ClassOf(err) != actor.ClassOutside {
		t.Errorf("no details: %v", err)
	}
	if len(d.ForTarget(otherTarget)) != 0 || len(d.ForTarget(target)) != 1 {
		t.Error("ForTarget picks the wrong objects")
	}
}

func TestDetailsMadeInGoAreHeldToTheSameRules(t *testing.T) {
	good := actor.PostgresDetail{Locations: []spiffeid.ID{target}, Actions: strs{"select"}}
	negative, nowhere, nothing := good, good, good
	negative.MaxRows = -1
	nowhere.Locations = nil
	nothing.Actions = nil
	if err := (actor.Details{good}).Validate(); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]actor.Details{"nil": nil, "nil object": {nil}, "negative": {negative}, "nowhere": {nowhere}, "nothing": {nothing}} {
		if err := d.Validate(); actor.ClassOf(err) != actor.ClassDetails {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.Within(actor.Details{good}); err == nil {
			t.Errorf("%s lies within something", name)
		}
	}
	if err := (actor.Details{good}).Within(nil); actor.ClassOf(err) != actor.ClassWider {
		t.Errorf("something lies within nothing: %v", err)
	}
}
