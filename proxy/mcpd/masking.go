package mcpd

import (
	"context"
	"slices"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// Results that masks can be put on, and what of them is kept then. All else is left out: it may hold what is to be hidden.
var maskable = map[string][]string{
	"tools/call":     {"content", "structuredContent", "isError", "resultType"},
	"resources/read": {"contents", "resultType", "ttlMs", "cacheScope"},
	"prompts/get":    {"messages", "resultType"},
}

// demands refuses obligations that can't be carried out on what a method answers.
func demands(method string) func(policy.Obligations) error {
	return func(o policy.Obligations) error {
		if o.MaxRows > 0 {
			return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy asks for a limit of rows, and what a tool server answers has none"}
		}
		for _, m := range o.Masks {
			if !m.OfAnswer() {
				return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks a table's column, and results of tools have none: $.name=masker or detect:kind=masker is expected"}
			}
			if _, can := maskable[method]; m.Path != "" && !can {
				return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks members of JSON, and what is answered here isn't the result of a tool, a resource or a prompt"}
			}
		}
		return nil
	}
}

// nothing refuses obligations where there is no answer to carry them out on.
func nothing(o policy.Obligations) error {
	if len(o.Masks) > 0 {
		return &proxy.Objection{Class: hop.ClassUnsupported, Reason: "the policy masks an answer, and this has none that goes to the agent"}
	}
	return demands("")(o)
}

// masksOf are those that the decision asks for; nil if it asks for none.
func (x *exchange) masksOf() *masks {
	if x.masks == nil && x.pass != nil {
		if rules := x.pass.Obligations().Masks; len(rules) > 0 {
			x.masks = &masks{json: mask.NewJSON(rules, x.e.keyed).Within(), record: x.pass.RecordID()}
		}
	}
	return x.masks
}

// beside are those for what the server says that is no answer. It may be about any call of the session, and come late: what any of them masks, all
// streams of the session mask from then on.
func (x *exchange) beside() *masks {
	if x.session == nil {
		return x.masksOf()
	}
	rules := x.session.masked()
	if len(rules) == 0 {
		return nil
	}
	if x.around == nil || !slices.Equal(x.aroundBy, rules) {
		if x.around != nil {
			x.counted = append(x.counted, x.around.counts()...)
		}
		x.around, x.aroundBy = &masks{json: mask.NewJSON(rules, x.e.keyed).Within(), record: x.pass.RecordID()}, rules
	}
	return x.around
}

// mayQuote says whether what the server asks could hold members that are masked: now, or late.
func (x *exchange) mayQuote() bool {
	own, around := x.masksOf(), x.beside()
	return own != nil && own.json.ByPath() || around != nil && around.json.ByPath()
}

// maskedCounts are all that the exchange masked.
func (x *exchange) maskedCounts() []audit.MaskedCount {
	out := x.counted
	for _, m := range []*masks{x.masks, x.around} {
		if m != nil {
			out = append(out, m.counts()...)
		}
	}
	return out
}

// put puts masks on a response, and spells it; raw is its text if nothing of it was changed.
func (x *exchange) put(m message, raw []byte) ([]byte, error) {
	if masks := x.masksOf(); masks != nil {
		var err error
		if m, err = masks.response(x.m.method, m); err != nil {
			return nil, err
		}
		raw = nil
	}
	switch {
	case raw != nil:
		return raw, nil
	case m.result == nil:
		return encode(map[string]any{"jsonrpc": "2.0", "id": m.id, "error": m.fault})
	}
	return encode(map[string]any{"jsonrpc": "2.0", "id": m.id, "result": m.result})
}

// final makes what the agent gets of the response. Where masks acted, it waits for the record of what they did.
func (x *exchange) final(ctx context.Context, m message, raw []byte) ([]byte, error) {
	out, err := x.rewrite(ctx, m, raw)
	if x.masksOf() == nil || err != nil || x.denied {
		return out, err
	}
	x.bytes += int64(len(out))
	status := "ok"
	if x.status >= 400 {
		status = "error"
	}
	err = x.complete(ctx, status)
	x.bytes -= int64(len(out))
	if err != nil {
		x.denied = true
		return refusalMessage(x.m.id, codeInternal, refusalOf(err)), nil
	}
	return out, nil
}
