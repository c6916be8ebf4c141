package actor

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// String is one line for people.
func (d PostgresDetail) String() string {
	var b strings.Builder
	b.WriteString(strings.Join(d.Actions, ","))
	fmt.Fprintf(&b, " on %s", orAny(d.Tables, "any table"))
	fmt.Fprintf(&b, " in %s", orAny(d.Databases, "any database"))
	fmt.Fprintf(&b, " of %s", targetNames(d.Locations))
	if d.MaxRows > 0 {
		fmt.Fprintf(&b, ", at most %d rows", d.MaxRows)
	}
	return b.String()
}

// String is one line for people.
func (d SSHDetail) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s as %s", strings.Join(d.Actions, ","), orAny(d.Accounts, "any account"))
	for _, l := range []struct {
		name string
		list []string
	}{{"commands", d.Commands}, {"programs", d.Programs}, {"subsystems", d.Subsystems}, {"paths", d.Paths}, {"forwards", d.Forwards}} {
		if l.list != nil {
			fmt.Fprintf(&b, ", %s %q", l.name, l.list)
		}
	}
	fmt.Fprintf(&b, " of %s", targetNames(d.Locations))
	return b.String()
}

// String is one line for people.
func (d HTTPDetail) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s on %s", strings.Join(d.Actions, ","), orAny(d.Paths, "any path"))
	if d.Query != nil {
		fmt.Fprintf(&b, ", query %s", strings.Join(d.Query, ","))
	}
	fmt.Fprintf(&b, " of %s", targetNames(d.Locations))
	return b.String()
}

// String is one line for people.
func (d TCPDetail) String() string {
	return fmt.Sprintf("%s of %s", strings.Join(d.Actions, ","), targetNames(d.Locations))
}

// String is one line for people.
func (d MCPDetail) String() string {
	var b strings.Builder
	b.WriteString(strings.Join(d.Actions, ","))
	for _, part := range []struct {
		name string
		list []string
	}{{"tools", d.Tools}, {"resources", d.Resources}, {"prompts", d.Prompts}} {
		if part.list != nil {
			fmt.Fprintf(&b, ", %s %s", part.name, strings.Join(part.list, ","))
		}
	}
	fmt.Fprintf(&b, " of %s", targetNames(d.Locations))
	return b.String()
}

// String is one line for people.
func (d KubeDetail) String() string {
	var b strings.Builder
	b.WriteString(strings.Join(d.Actions, ","))
	for _, part := range []struct {
		name string
		list []string
	}{
		{"resources", d.Resources}, {"namespaces", d.Namespaces}, {"names", d.Names}, {"containers", d.Containers}, {"programs", d.Programs}, {"paths", d.Paths},
	} {
		if part.list != nil {
			fmt.Fprintf(&b, ", %s %s", part.name, strings.Join(part.list, ","))
		}
	}
	if d.Commands != nil {
		fmt.Fprintf(&b, ", commands %q", d.Commands)
	}
	fmt.Fprintf(&b, " of %s", targetNames(d.Locations))
	return b.String()
}

func targetNames(ids []spiffeid.ID) string {
	var names []string
	for _, l := range ids {
		name, err := TargetName(l)
		if err != nil {
			name = l.String()
		}
		names = append(names, name)
	}
	return strings.Join(names, ",")
}

func orAny(list []string, all string) string {
	if list == nil {
		return all
	}
	return strings.Join(list, ",")
}

// String is one line for people.
func (d Details) String() string {
	parts := make([]string, len(d))
	for i, detail := range d {
		parts[i] = fmt.Sprint(detail)
	}
	return strings.Join(parts, "; ")
}

// narrowed says for people what a grant has less of than the one before.
func narrowed(before, after Details, leftBefore, leftAfter int, expBefore, expAfter time.Time) []string {
	var out []string
	if was, is := before.String(), after.String(); was != is {
		out = append(out, fmt.Sprintf("may: %s (before: %s)", is, was))
	}
	if leftAfter < leftBefore-1 {
		out = append(out, fmt.Sprintf("delegations left: %d (before: %d)", leftAfter, leftBefore-1))
	}
	if expAfter.Before(expBefore) {
		out = append(out, fmt.Sprintf("until: %s (before: %s)", clock(expAfter), clock(expBefore)))
	}
	return out
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// Tree writes who acts for whom, and what each hop narrowed, as plain text. All
// text of strangers in it was refused control characters when it was parsed.
func (c *Chain) Tree(w io.Writer) error {
	var b strings.Builder
	for i, h := range c.Hops {
		indent := strings.Repeat("   ", max(0, i-1))
		mark := ""
		if i > 0 {
			mark = "└─ "
		}
		name := h.ID
		if i > 0 && h.Agent.IsDirectChildOf(c.Hops[i-1].Agent) {
			last := h.Agent.Segments()[h.Agent.Depth()-1]
			name = "…/" + last.Name + "/" + last.Instance
		}
		if h.Kind == HopUser {
			name = fmt.Sprintf("%s (signed in at %s)", c.User.Subject, c.User.Issuer)
		}
		fmt.Fprintf(&b, "%s%s%s  [%s]\n", indent, mark, name, h.gradeText(c))
		deeper := indent + "   "
		if i == 0 {
			deeper = ""
		}
		if g := h.Grant; g != nil {
			line := "│  "
			for _, text := range h.grantText() {
				fmt.Fprintf(&b, "%s%s%s\n", deeper, line, text)
			}
		}
		if i == len(c.Hops)-1 {
			fmt.Fprintf(&b, "%s   may: %s\n%s   at:  %s\n", deeper, c.Details, deeper, c.Target)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (h Hop) gradeText(c *Chain) string {
	if h.Kind == HopUser {
		return fmt.Sprintf("%s, root evidence: %s", h.Grade, c.RootEvidence)
	}
	if h.Evidence.Kind == "" {
		return string(h.Grade)
	}
	return fmt.Sprintf("%s by %s, uid %d", h.Grade, h.Evidence.Kind, h.Evidence.UID)
}

func (h Hop) grantText() []string {
	g := h.Grant
	var out []string
	if g.Purpose != "" {
		out = append(out, fmt.Sprintf("purpose: %q", g.Purpose))
	}
	if h.Kind == HopUser {
		return append(out, "may: "+g.Cap.String(), fmt.Sprintf("until: %s, delegations left: %d", clock(g.Expires), g.Left))
	}
	if len(g.Narrowed) == 0 {
		return append(out, "narrowed nothing")
	}
	return append(out, slices.Clone(g.Narrowed)...)
}
