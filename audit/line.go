package audit

import (
	"fmt"
	"strings"

	"github.com/deputymesh/deputy/actor"
)

// Line is the record on one line, for people who watch a log.
func (r *Record) Line() string {
	parts := []string{r.Time.UTC().Format("2006-01-02T15:04:05.000Z"), fmt.Sprintf("%-17s", r.Type)}
	if what := r.summary(); what != "" {
		parts = append(parts, what)
	}
	if who := r.Chain.short(); who != "" {
		parts = append(parts, " "+who)
	}
	if r.Decision != "" {
		parts = append(parts, " decision "+string(r.Decision))
	}
	if r.Txn != "" {
		parts = append(parts, " task "+printable(r.Txn))
	}
	return strings.Join(append(parts, " record "+string(r.ID)), " ")
}

// short is the chain as a reader says it: alice > planner > researcher.
func (c *Chain) short() string {
	if c == nil {
		return ""
	}
	names := []string{printable(c.User.Subject)}
	for _, h := range c.Hops[1:] {
		name := printable(h.ID)
		if id, err := actor.AgentIDFromString(h.ID); err == nil {
			name = id.Name()
		}
		if h.Grade != actor.Attested {
			name += "?"
		}
		names = append(names, name)
	}
	return strings.Join(names, " > ")
}

func (r *Record) summary() string {
	switch e := r.Event.(type) {
	case *SignIn:
		return fmt.Sprintf("%s: %s at %s%s", e.Result, printable(e.Subject), printable(e.Issuer), reason(e.Reason))
	case *SessionOpened:
		return fmt.Sprintf("%s, %s, first agent %s", printable(e.Subject), printable(e.RootType), printable(e.FirstAgent))
	case *SessionEnded:
		return printable(r.Session) + " " + printable(e.Reason)
	case *Exchange:
		return fmt.Sprintf("%s: %s for %s%s%s", e.Result, printable(e.Presenter), targetName(e.Audience), class(e.Class), reason(e.Reason))
	case *Spawn:
		return fmt.Sprintf("%s: %s %s%s%s", e.Result, printable(e.Agent), printable(e.Grade), class(e.Class), reason(e.Reason))
	case *AgentEnded:
		return printable(e.Agent) + " " + printable(e.Reason)
	case *JWTSVID:
		return fmt.Sprintf("%s: %s for %s%s%s", e.Result, printable(e.Subject), printable(strings.Join(e.Audience, ", ")), class(e.Class), reason(e.Reason))
	case *ConnectionOpened:
		return fmt.Sprintf("%s by %s", targetName(e.Target), printable(e.Protocol))
	case *ConnectionClosed:
		return fmt.Sprintf("%s after %s%s", printable(e.Reason), counted(e.Commands, "command"), reason(e.Detail))
	case *Decision:
		statement := ""
		if e.Statement != nil {
			statement = "  " + cut(printable(oneLine(e.Statement.Scrubbed)))
		}
		return fmt.Sprintf("%s %s on %s%s%s%s%s", e.Effect, printable(e.Action), targetName(e.Target), class(e.Class), policies(e, " by "), reason(e.Reason), statement)
	case *ChainStated:
		return fmt.Sprintf("%s for %s", e.short(), targetName(e.Target))
	case *Forwarded:
		return ""
	case *Masked:
		return maskedText(e.Counts)
	case *Completed:
		status := printable(e.Status)
		if e.Code != "" {
			status += " " + printable(e.Code)
		}
		return strings.TrimSpace(fmt.Sprintf("%s, %s %s", status, counted(e.Rows, "row"), maskedText(e.Masked)))
	case *OutcomeUnknown:
		return fmt.Sprintf("forwarded: %v%s", e.Forwarded, reason(e.Reason))
	case *Refused:
		times := ""
		if e.Count > 0 {
			times = fmt.Sprintf(" %d times", e.Count)
		}
		return fmt.Sprintf("%s%s %s%s", printable(e.Class), times, printable(e.Peer), reason(e.Reason))
	case *Revoked:
		by := ""
		if e.By != "" { // a proxy hears from the broker what, not by whom
			by = " by " + printable(e.By)
		}
		return fmt.Sprintf("%s %s%s%s", printable(e.Kind), printable(e.Value), by, reason(e.Reason))
	case *OperatorCall:
		return fmt.Sprintf("%s: %s by %s %s%s", e.Result, printable(e.Call), printable(e.Subject), printable(e.Object), reason(e.Reason))
	case *PolicyLoaded:
		return fmt.Sprintf("%s: %s version %d%s", e.Result, printable(e.Set), e.Version, reason(e.Reason))
	case *Heartbeat:
		return fmt.Sprintf("%s open", counted(int64(e.Open), "decision"))
	case *Evidence:
		return fmt.Sprintf("%s %s, %d bytes", printable(e.Kind), e.Digest, len(e.Data))
	case *LogOpened:
		if e.TornBytes > 0 {
			return fmt.Sprintf("after a crash: %d unfinished bytes wiped, %s open", e.TornBytes, counted(int64(e.OpenedCount), "decision"))
		}
		if e.Recovered {
			return fmt.Sprintf("after a crash: %s open", counted(int64(e.OpenedCount), "decision"))
		}
		return fmt.Sprintf("segment %d", e.Segment)
	case *LogSegment:
		return fmt.Sprintf("segment %d, %s open", e.Segment, counted(int64(e.Total), "decision"))
	case *LogClosed:
		return printable(e.Reason)
	}
	return ""
}

func class(c string) string {
	if c == "" {
		return ""
	}
	return " (" + printable(c) + ")"
}

func maskedText(counts []MaskedCount) string {
	var all []string
	for _, m := range counts {
		all = append(all, fmt.Sprintf("masked %s in %s (%s)", counted(m.Values, "value"), printable(m.Column), printable(m.Rule)))
	}
	return strings.Join(all, ", ")
}
