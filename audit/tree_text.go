package audit

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/deputymesh/deputy/actor"
)

const maxShown = 100 // characters of a statement

// WriteText draws the tree for people.
func (t *Tree) WriteText(w io.Writer) error {
	d := &drawing{}
	d.head(t)
	for i, a := range t.Agents {
		d.agent(a, "", i == len(t.Agents)-1)
	}
	d.foot(t)
	_, err := w.Write(d.out.Bytes())
	return err
}

type drawing struct{ out bytes.Buffer }

func (d *drawing) line(format string, args ...any) {
	d.out.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " "))
	d.out.WriteByte('\n')
}

func (d *drawing) head(t *Tree) {
	purpose := ""
	if t.Purpose != "" {
		purpose = fmt.Sprintf("  “%s”", printable(t.Purpose))
	}
	d.line("Task %s%s", printable(t.Txn), purpose)
	if t.Dev {
		d.line("  dev: issuer and broker ran in one process, so the grants prove nothing")
	}
	for _, s := range t.Sessions {
		text := "session " + printable(s.ID)
		if s.Opened != nil {
			text += ", opened " + day(*s.Opened)
		}
		switch {
		case s.Ended != nil:
			text += fmt.Sprintf(", ended %s (%s)", day(*s.Ended), printable(s.Reason))
		case s.Ends != nil:
			text += ", ends " + day(*s.Ends)
		}
		d.line("  %s", text)
	}
	d.line("")
	if t.User == nil {
		d.line("(user unknown: no record here carries the chain)")
		return
	}
	var how []string
	switch t.RootEvidence {
	case actor.RootVerified:
		how = append(how, "sign-in verified")
	case actor.RootBroker:
		how = append(how, "asserted: on the broker's word")
	}
	if t.AuthTime != nil {
		how = append(how, "signed in "+day(*t.AuthTime))
	}
	if t.ACR != "" {
		how = append(how, "acr "+printable(t.ACR))
	}
	if len(t.Roles) > 0 {
		how = append(how, "roles "+printable(strings.Join(t.Roles, ", ")))
	}
	d.line("%s  [%s]", printable(t.User.Subject), strings.Join(how, "; "))
	d.line("at %s", printable(t.User.Issuer))
}

func (d *drawing) agent(a *TreeAgent, indent string, last bool) {
	branch, below := "├─ ", "│  "
	if last {
		branch, below = "└─ ", "   "
	}
	name, instance := a.ID, ""
	if id, err := actor.AgentIDFromString(a.ID); err == nil {
		segments := id.Segments()
		name, instance = id.Name(), segments[len(segments)-1].Instance
	}
	d.line("%s%s%s %s  [%s]%s", indent, branch, printable(name), shortened(instance), grade(a), lifetime(a))
	indent += below
	bar := "   "
	if len(a.Children) > 0 || len(a.Commands) > 0 || len(a.Refusals) > 0 {
		bar = "│  "
	}
	if g := a.Grant; g != nil {
		d.line("%s%smay %s", indent, bar, printable(g.Cap.String()))
		d.line("%s%suntil %s, %s", indent, bar, day(g.Expires), delegations(g.Left))
		for _, n := range g.Narrowed {
			d.line("%s%snarrowed: %s", indent, bar, printable(n))
		}
	} else {
		d.line("%s%snamed by the broker, without a grant", indent, bar)
	}
	var also []string
	if a.Renewals > 0 {
		also = append(also, counted(int64(a.Renewals), "renewal")+" of its grant")
	}
	if a.Tokens > 0 {
		also = append(also, counted(int64(a.Tokens), "token")+" from the broker")
	}
	if len(also) > 0 {
		d.line("%s%s%s", indent, bar, strings.Join(also, ", "))
	}
	left := len(a.Commands) + len(a.Refusals) + len(a.Children)
	commands, refusals := a.Commands, a.Refusals
	for len(commands)+len(refusals) > 0 {
		left--
		if len(refusals) == 0 || len(commands) > 0 && !refusals[0].Time.Before(commands[0].Time) {
			d.command(commands[0], indent, left == 0)
			commands = commands[1:]
		} else {
			d.refusal(refusals[0], indent, left == 0)
			refusals = refusals[1:]
		}
	}
	for i, c := range a.Children {
		d.agent(c, indent, i == len(a.Children)-1)
	}
}

func (d *drawing) command(c *TreeCommand, indent string, last bool) {
	branch, below := "├─ ", "│           "
	if last {
		branch, below = "└─ ", "            "
	}
	e := c.Decision
	mark := "✓"
	if e.Effect == Refuse {
		mark = "✗"
	}
	d.line("%s%s%s %s %s on %s%s", indent, branch, clock(c.Time), mark, printable(e.Action), targetName(e.Target), objects(e.Objects))
	if e.Statement != nil && e.Statement.Scrubbed != "" {
		d.line("%s%s%s", indent, below, cut(printable(oneLine(e.Statement.Scrubbed))))
	}
	if e.Effect == Refuse {
		d.line("%s%srefused (%s)%s%s", indent, below, printable(e.Class), policies(e, " by "), reason(e.Reason))
	} else {
		d.line("%s%sallowed%s%s → %s", indent, below, policies(e, " by "), obligations(e.Obligations), outcome(c))
	}
	d.line("%s%srecord %s", indent, below, c.Record)
}

func (d *drawing) refusal(r *TreeRefusal, indent string, last bool) {
	branch, below := "├─ ", "│           "
	if last {
		branch, below = "└─ ", "            "
	}
	to, times := "", ""
	if r.Target != "" {
		to = " to " + targetName(r.Target)
	}
	if r.Count > 1 {
		times = fmt.Sprintf(", %d times", r.Count)
	}
	d.line("%s%s%s ✗ %s%s refused (%s)%s%s", indent, branch, clock(r.Time), r.What, to, printable(r.Class), times, reason(r.Reason))
	d.line("%s%srecord %s", indent, below, r.Record)
}

func (d *drawing) foot(t *Tree) {
	if len(t.Revocations) > 0 {
		d.line("")
	}
	for _, r := range t.Revocations {
		e := r.Event.(*Revoked)
		by := ""
		if e.By != "" {
			by = " by " + printable(e.By)
		}
		d.line("%s revoked: %s %s%s%s", day(r.Time), printable(e.Kind), printable(e.Value), by, reason(e.Reason))
	}
	n := t.Totals
	d.line("")
	parts := []string{counted(int64(n.Agents), "agent"), counted(int64(n.Commands), "command"), fmt.Sprintf("%d allowed", n.Allowed), fmt.Sprintf("%d refused", n.Refused)}
	if n.Masked > 0 {
		parts = append(parts, counted(n.Masked, "value")+" masked")
	}
	if n.Open > 0 {
		parts = append(parts, fmt.Sprintf("%d without an outcome yet", n.Open))
	}
	if n.Unknown > 0 {
		parts = append(parts, fmt.Sprintf("%d with an unknown outcome", n.Unknown))
	}
	d.line("%s", strings.Join(parts, ", "))
}

func grade(a *TreeAgent) string {
	text := string(a.Grade)
	if text == "" {
		text = "grade unknown"
	}
	if e := a.Evidence; e.Kind != "" {
		text += fmt.Sprintf(": %s, uid %d", printable(e.Kind), e.UID)
		if e.Path != "" {
			text += ", " + printable(e.Path)
		}
		if e.SHA256 != "" {
			text += ", sha256 " + shortened(e.SHA256)
		}
	}
	return text
}

func lifetime(a *TreeAgent) string {
	var parts []string
	if a.Spawned != nil {
		parts = append(parts, "started "+clock(*a.Spawned))
	}
	if a.Ended != nil {
		parts = append(parts, fmt.Sprintf("ended %s (%s)", clock(*a.Ended), printable(a.EndReason)))
	}
	if len(parts) == 0 {
		return ""
	}
	return "  " + strings.Join(parts, ", ")
}

func outcome(c *TreeCommand) string {
	o := c.Outcome
	switch {
	case c.Unknown != "" && c.Forwarded:
		return "OUTCOME UNKNOWN after it was forwarded: " + printable(c.Unknown)
	case c.Unknown != "":
		return "OUTCOME UNKNOWN: " + printable(c.Unknown)
	case o == nil && c.Forwarded:
		return "forwarded, no outcome yet"
	case o == nil:
		return "no outcome yet"
	}
	text := printable(o.Status)
	if o.Code != "" {
		text += " " + printable(o.Code)
	}
	if o.Rows > 0 {
		text += ", " + counted(o.Rows, "row")
	}
	if o.Affected > 0 {
		text += ", " + counted(o.Affected, "row") + " changed"
	}
	if strings.HasPrefix(c.Decision.Action, "ssh:sftp-") { // of a file
		if o.BytesOut > 0 {
			text += ", " + counted(o.BytesOut, "byte") + " read"
		}
		if o.BytesIn > 0 {
			text += ", " + counted(o.BytesIn, "byte") + " written"
		}
	}
	if o.Limit != "" {
		text += ", cut by " + printable(o.Limit)
	}
	for _, m := range c.masked() {
		where := ""
		if m.Column != "" {
			where = " in " + printable(m.Column)
		}
		text += fmt.Sprintf(", masked %s%s (%s)", counted(m.Values, "value"), where, printable(m.Rule))
	}
	if o.Duration > 0 {
		text += fmt.Sprintf(", %.1f ms", float64(o.Duration)/1000)
	}
	return text
}

func policies(e *Decision, before string) string {
	if len(e.Policies) == 0 {
		return ""
	}
	return before + printable(strings.Join(e.Policies, ", "))
}

func obligations(list []Obligation) string {
	var all []string
	for _, o := range list {
		text := printable(o.Name)
		if o.Value != "" {
			text += " " + printable(o.Value)
		}
		all = append(all, text)
	}
	if len(all) == 0 {
		return ""
	}
	return " with " + strings.Join(all, ", ")
}

func objects(list []Object) string {
	var all []string
	for i, o := range list {
		if i == 4 {
			all = append(all, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		text := printable(o.Name)
		if len(o.Columns) > 0 {
			text += "(" + cut(printable(strings.Join(o.Columns, ", "))) + ")"
		}
		all = append(all, text)
	}
	if len(all) == 0 {
		return ""
	}
	return ": " + strings.Join(all, ", ")
}

func delegations(left int) string {
	if left == 0 {
		return "no further delegation"
	}
	return counted(int64(left), "further delegation")
}

func reason(s string) string {
	if s == "" {
		return ""
	}
	return ": " + cut(printable(s))
}

func counted(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func targetName(id string) string { return printable(id[strings.LastIndexByte(id, '/')+1:]) }

func shortened(hex string) string {
	if len(hex) > 8 {
		return printable(hex[:8]) + "…"
	}
	return printable(hex)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func cut(s string) string {
	if r := []rune(s); len(r) > maxShown {
		return string(r[:maxShown]) + "…"
	}
	return s
}

func day(t time.Time) string   { return t.UTC().Format("2006-01-02 15:04:05Z") }
func clock(t time.Time) string { return t.UTC().Format("15:04:05") }

// printable escapes what could fake lines or turn text around on a terminal.
func printable(s string) string {
	if strings.IndexFunc(s, hidden) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if hidden(r) {
			fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func hidden(r rune) bool {
	return r != ' ' && (!unicode.IsPrint(r) || unicode.Is(unicode.Bidi_Control, r))
}
