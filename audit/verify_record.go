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
	switch e := r.Event.(type) {
	case *Decision:
		if e.Effect == Allow {
			v.open[r.ID] = r.Seq
			v.openOrder = append(v.openOrder, r.ID)
			v.compact()
		}
	case *Forwarded:
		v.belongs(r, "forwarded")
	case *Completed:
		v.belongs(r, "an outcome")
		delete(v.open, r.Decision)
	case *OutcomeUnknown:
		v.report.Unknown++
		v.belongs(r, "an unknown outcome")
		delete(v.open, r.Decision)
	case *LogSegment:
		v.listed(r, e)
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

// belongs holds what follows a decision against one that is open.
func (v *verifier) belongs(r *Record, what string) {
	if _, ok := v.open[r.Decision]; !ok && !(v.blind && r.Decision != "") {
		v.problem(ProblemLink, "record %s: %s without an open decision that allows it (decision %s)", r.ID, what, r.Decision)
	}
}

// listed reads the decisions that were open when a segment began. Where the log was pruned they are all that is known of
// those before.
func (v *verifier) listed(r *Record, e *LogSegment) {
	for _, d := range e.Open {
		if v.blind {
			v.open[d.ID] = d.Seq
			v.openOrder = append(v.openOrder, d.ID)
			continue
		}
		if seq, ok := v.open[d.ID]; !ok || seq != d.Seq {
			v.problem(ProblemLink, "record %s: lists the decision %s, number %d, as open", r.ID, d.ID, d.Seq)
		}
	}
	if v.blind && len(v.open) >= e.Total {
		v.blind = false
	}
}

// compact forgets decisions that have their outcome.
func (v *verifier) compact() {
	if len(v.openOrder) < 1024 || len(v.openOrder) < 2*len(v.open) {
		return
	}
	var rest []RecordID
	for _, id := range v.openOrder {
		if _, ok := v.open[id]; ok {
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
