package audit

import "time"

// record follows one record: links, silence, credentials.
func (v *verifier) record(r *Record) {
	if v.report.First.IsZero() {
		v.report.First = r.Time
	}
	v.report.Dev = v.report.Dev || r.Dev
	v.silence(r)
	v.last = r
	whole := v.report.FirstSeq == 0
	switch e := r.Event.(type) {
	case *Decision:
		if e.Effect == Allow {
			v.open[r.ID] = true
			v.openOrder = append(v.openOrder, r.ID)
			v.compact()
		}
	case *Forwarded:
		if !v.open[r.Decision] && whole {
			v.problem(ProblemLink, "record %s: forwarded without an open decision that allows it (decision %s)", r.ID, r.Decision)
		}
	case *Completed:
		if !v.open[r.Decision] && whole {
			v.problem(ProblemLink, "record %s: an outcome without an open decision (decision %s)", r.ID, r.Decision)
		}
		delete(v.open, r.Decision)
	case *OutcomeUnknown:
		v.report.Unknown++
		if !v.open[r.Decision] && whole {
			v.problem(ProblemLink, "record %s: an unknown outcome without an open decision (decision %s)", r.ID, r.Decision)
		}
		delete(v.open, r.Decision)
	case *LogSegment:
		if !whole {
			for _, d := range e.Open {
				v.open[d.ID] = true
			}
			break
		}
		for _, d := range e.Open {
			if !v.open[d.ID] {
				v.problem(ProblemLink, "record %s: lists the decision %s as open", r.ID, d.ID)
			}
		}
	case *LogOpened:
		if e.Recovered {
			v.report.Recoveries++
		}
	case *Evidence:
		v.credentials.keep(e)
	}
	if err := v.credentials.check(r); err != nil {
		v.problem(ProblemCredential, "record %s: %v", r.ID, err)
	}
}

// compact forgets decisions that have their outcome.
func (v *verifier) compact() {
	if len(v.openOrder) < 1024 || len(v.openOrder) < 2*len(v.open) {
		return
	}
	var rest []RecordID
	for _, id := range v.openOrder {
		if v.open[id] {
			rest = append(rest, id)
		}
	}
	v.openOrder = rest
}

// silence compares the time since the record before with the heartbeat that this run of the writer promised.
func (v *verifier) silence(r *Record) {
	if hb, ok := r.Event.(*Heartbeat); ok {
		v.beat = time.Duration(hb.Interval) * time.Microsecond
	}
	if r.Type == TypeLogOpened || v.last == nil {
		v.beat = 0
		return
	}
	if v.beat > 0 && r.Time.Sub(v.last.Time) > 2*v.beat+time.Second && len(v.report.Silences) < maxProblems {
		v.report.Silences = append(v.report.Silences, Silence{AfterSeq: v.last.Seq, From: v.last.Time, To: r.Time})
	}
}
