package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/policy"
)

// Authorize asks whether the session may do cmd. It matches every op with the capability, decides every
// op by policy, and records the decision. For a command that isn't proven read-only it returns when the
// decision is durable; for a read-only one at once, and Pass.Wait must succeed before any byte of the
// answer leaves. The error is a [*Refusal], recorded before it is returned.
func (s *Session) Authorize(ctx context.Context, cmd Command) (*Pass, error) {
	start := s.core.cfg.Now()
	v := s.state()
	d := s.decide(v, cmd, start)

	// Refusals are made durable before anybody is told.
	if d.refusal != nil {
		return nil, s.refused(ctx, v, cmd, d, start)
	}
	record := s.recordOf(v, s.decisionOf(v, cmd, d, start))
	pending := s.core.cfg.Log.Submit(record)
	p := &Pass{session: s, verified: v, pending: pending, obligations: d.obligations, decided: start, readOnly: cmd.ReadOnly}
	select {
	case <-pending.Done(): // refused at once, by a quota for one: then nothing goes to the target
		if err := p.Wait(ctx); err != nil {
			return nil, err
		}
	default:
	}
	if !cmd.ReadOnly {
		if err := p.Wait(ctx); err != nil {
			if ctx.Err() != nil {
				// The record may become durable all the same; then it says that nothing was sent.
				s.abandon(p)
			}
			return nil, err
		}
		// The wait may have been long; a revocation that arrived in it counts.
		if r := s.recheck(); r != nil {
			s.abandon(p)
			return nil, s.core.refuse(ctx, s.where(v), r)
		}
	}
	if !s.hold(p) {
		s.abandon(p)
		return nil, s.core.refuse(ctx, s.where(v), s.over())
	}
	return p, nil
}

// Would says whether cmd would be allowed now. It records nothing and allows nothing: it is for leaving out of a list what can't be used.
func (s *Session) Would(cmd Command) bool {
	return s.decide(s.state(), cmd, s.core.cfg.Now()).refusal == nil
}

// Demands are the obligations under which policy would allow cmd, or some of what it reaches, whatever the credential reaches; none where it wouldn't. It
// records nothing and allows nothing: it is for showing no more on one way than on another.
func (s *Session) Demands(cmd Command) policy.Obligations {
	var out policy.Obligations
	set, v, now := s.core.cfg.State.Policy(), s.state(), s.core.cfg.Now()
	if set == nil {
		return out
	}
	for _, op := range cmd.Ops {
		out = out.And(set.Demanded(policy.Request{
			Subject: v.subject, Now: now, Action: op.Action.Name(), Resource: op.Resource, Exact: op.Exact,
			Command: policy.Command{Database: cmd.Database, Account: cmd.Account, ReadOnly: cmd.ReadOnly, Kind: cmd.Kind},
		}))
	}
	return out
}

// Refuse records a refusal that an engine makes before it has a command to authorize, such as a statement
// that can't be parsed, and returns it.
func (s *Session) Refuse(ctx context.Context, cmd Command, o Objection) *Refusal {
	now := s.core.cfg.Now()
	return s.refused(ctx, s.state(), cmd, verdict{refusal: &Refusal{Class: o.Class, Reason: o.Reason}}, now)
}

// verdict is a decision before it is recorded. refusal is nil if the command is allowed.
type verdict struct {
	refusal     *Refusal
	set         *policy.Set
	policies    []string
	obligations policy.Obligations
}

func (s *Session) decide(v *verified, cmd Command, now time.Time) verdict {
	// 1. The session: expiry, revocations, freshness of the feed, and whether anything can be recorded.
	if r := s.recheck(); r != nil {
		return verdict{refusal: r}
	}
	if err := s.core.cfg.Log.Err(); err != nil {
		return verdict{refusal: evidenceRefusal(err)}
	}
	if err := cmd.check(s.target.Name.String(), s.database); err != nil {
		return verdict{refusal: &Refusal{Class: ClassUndecided, Reason: "the command can't be decided: " + err.Error(), Err: err}}
	}

	// 2. The capability: what none of the authorization_details covers, policy can't allow.
	limits, err := cmd.match(v.chain.Details)
	if err != nil {
		return verdict{refusal: &Refusal{Class: ClassCapability, Reason: "the credential doesn't reach that far: " + err.Error(), Err: err}}
	}

	// 3. The policy: every op on its own, all must be allowed.
	out := verdict{set: s.core.cfg.State.Policy()}
	if out.set == nil {
		out.refusal = &Refusal{Class: ClassNotReady, Reason: "this proxy has no policy set, so nothing is allowed"}
		return out
	}
	for _, op := range cmd.Ops {
		d := out.set.Decide(policy.Request{
			Subject: v.subject, Now: now, Action: op.Action.Name(), Resource: op.Resource, Exact: op.Exact,
			Command: policy.Command{Database: cmd.Database, Account: cmd.Account, ReadOnly: cmd.ReadOnly, Kind: cmd.Kind},
		})
		if !d.Allow {
			class := ClassPolicy
			if d.Err != nil {
				class = ClassUndecided
			}
			out.policies = d.Policies
			out.refusal = &Refusal{Class: class, Reason: d.Reason, Policy: strings.Join(d.Policies, ", "), Err: d.Err}
			return out
		}
		for _, name := range d.Policies {
			if !slices.Contains(out.policies, name) {
				out.policies = append(out.policies, name)
			}
		}
		out.obligations = out.obligations.And(d.Obligations)
	}
	if n := uint64(limits.MaxRows); limits.MaxRows > 0 && (out.obligations.MaxRows == 0 || n < out.obligations.MaxRows) {
		out.obligations.MaxRows = n
	}

	for _, m := range out.obligations.Masks {
		if m.OfAnswer() && !answersText(cmd.Ops[0].Resource.Kind) {
			out.refusal = &Refusal{Class: ClassUndecided, Reason: "the policy masks " + m.What() + " in answers, and answers of this target have columns or nothing to mask", Policy: strings.Join(out.policies, ", ")}
			return out
		}
	}

	// 4. The engine: whether the command can be carried out under these obligations.
	if cmd.Check != nil {
		if err := cmd.Check(out.obligations); err != nil {
			o := &Objection{Class: ClassUndecided, Reason: "the command can't be carried out as the policy demands"}
			errors.As(err, &o)
			out.refusal = &Refusal{Class: o.Class, Reason: o.Reason, Policy: strings.Join(out.policies, ", "), Err: err}
		}
	}
	return out
}

// answersText says whether answers about a kind of resource are texts, which masks by path and detector are for. Whether it can put them on is
// for the engine to say.
func answersText(k policy.Kind) bool {
	switch k {
	case policy.KindEndpoint, policy.KindService, policy.KindTool, policy.KindMCPResource, policy.KindPrompt, policy.KindKubeResource:
		return true
	}
	return false
}

// refused records a refused command and gives the refusal its record.
func (s *Session) refused(ctx context.Context, v *verified, cmd Command, d verdict, start time.Time) *Refusal {
	r := d.refusal
	receipt, err := s.core.cfg.Log.Append(ctx, s.recordOf(v, s.decisionOf(v, cmd, d, start)))
	if err != nil {
		s.core.unrecorded(ctx, "a refusal couldn't be recorded", err)
		r.RecordID = ""
		return r
	}
	r.RecordID = receipt.RecordID
	return r
}

func (s *Session) decisionOf(v *verified, cmd Command, d verdict, start time.Time) *audit.Decision {
	out := &audit.Decision{
		Effect: audit.Allow, Target: s.target.Name.String(), Action: cmd.actions(), Objects: cmd.objects(),
		Statement: s.text(cmd, d.obligations.Record), ReadOnly: cmd.ReadOnly, Account: cmd.Account,
		Policies: d.policies, Took: audit.Since(start, s.core.cfg.Now()),
	}
	if out.Action == "" {
		out.Action = cmd.Kind
	}
	if d.set != nil {
		out.PolicyVersion, out.PolicyDigest = int64(d.set.Version()), audit.Digest(d.set.Digest())
	}
	if d.refusal != nil {
		out.Effect, out.Class, out.Reason = audit.Refuse, d.refusal.Class, clip(d.refusal.Reason, 2048)
		return out
	}
	out.Obligations = s.masksText(d.obligations.Masks)
	if n := d.obligations.MaxRows; n > 0 {
		out.Obligations = append(out.Obligations, audit.Obligation{Name: "limit", Value: fmt.Sprintf("rows=%d", n)})
	}
	if r := d.obligations.Record; r != policy.RecordDefault {
		out.Obligations = append(out.Obligations, audit.Obligation{Name: "record", Value: r.String()})
	}
	return out
}

// masksText spells masks for the record. Most commands of a session have those of the same policies.
func (s *Session) masksText(masks []policy.MaskRule) []audit.Obligation {
	if len(masks) == 0 {
		return nil
	}
	last := s.masks.Load()
	if last == nil || len(last.rules) != len(masks) || &last.rules[0] != &masks[0] {
		last = &spelledMasks{rules: masks}
		for _, m := range masks {
			last.text = append(last.text, audit.Obligation{Name: "mask", Value: m.String()})
		}
		s.masks.Store(last)
	}
	return slices.Clip(last.text)
}

// spelledMasks are masks with their text; neither ever changes.
type spelledMasks struct {
	rules []policy.MaskRule
	text  []audit.Obligation
}

func (s *Session) text(cmd Command, r policy.Recording) *audit.Text {
	if cmd.Text == "" && cmd.Scrubbed == "" {
		return nil
	}
	kept := cmd.Scrubbed
	switch r {
	case policy.RecordFull:
		kept = cmd.Text
	case policy.RecordDigest:
		kept = ""
	}
	return s.core.cfg.Log.Text(cmd.Text, kept)
}

func (s *Session) where(v *verified) where {
	return where{target: s.target.Name.String(), peer: v.chain.Leaf().ID, connection: s.id, chain: v.record}
}

// hold makes the session answer for a pass until it is completed. It fails if the session was closed.
func (s *Session) hold(p *Pass) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ctx.Err() != nil {
		return false
	}
	s.open[p] = struct{}{}
	s.commands++
	return true
}

// release takes a pass that is completed off the session's hands.
func (s *Session) release(p *Pass) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, p)
}

// abandon completes a pass that nobody got.
func (s *Session) abandon(p *Pass) {
	p.used.Store(true)
	p.finish(Outcome{Status: "not_sent"})
}
