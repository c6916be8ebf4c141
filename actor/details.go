package actor

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/deputymesh/deputy/internal/strictjson"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxDetails = 16 // objects in one authorization_details
	maxList    = 64 // entries in one list of an object
)

// Details are capabilities: RFC 9396 authorization_details, called cap in
// grants. Each object grants on its own; what none grants is refused. There is
// always at least one, so that a missing list can't be read as "everything".
type Details []Detail

// Detail is one capability object. The set of types is closed: an unknown type
// or member is a refusal.
type Detail interface {
	// Type is the RFC 9396 type, such as deputy_postgres.
	Type() string
	// Targets are the locations.
	Targets() []spiffeid.ID

	validate() error
	// within says why the receiver is not within parent.
	within(parent Detail) error
	// match says why the action is not covered, or within which limits it is.
	match(Action) (Limits, error)
	at(target spiffeid.ID) (Detail, bool)
}

// Action is one thing that an agent wants to do to one object of one target.
type Action interface {
	// Name is the action's name in policy, such as postgres:select.
	Name() string
	action()
}

// Limits are what the capability demands of a permitted action.
type Limits struct {
	// MaxRows is the greatest number of rows to give back; 0 is no limit.
	MaxRows int64 `json:"max_rows,omitempty"`
}

// Within refuses, with [ClassWider], what is not narrower than or equal to
// parent: each object must lie within one single object of parent.
func (d Details) Within(parent Details) error {
	if err := d.Validate(); err != nil {
		return err
	}
	for i, child := range d {
		var reasons []error
		inside := false
		for _, p := range parent {
			err := child.within(p)
			if err == nil {
				inside = true
				break
			}
			reasons = append(reasons, err)
		}
		if !inside {
			return wrap(ClassWider, fmt.Errorf("object %d (%s) lies within none of the %d before: %w",
				i, child.Type(), len(parent), errors.Join(reasons...)))
		}
	}
	return nil
}

// Match refuses, with [ClassOutside], an action that no object covers. Where
// several cover it, the most permissive limit holds: each grants on its own, and
// only so can dropping an object never widen.
func (d Details) Match(a Action) (Limits, error) {
	if a == nil {
		return Limits{}, refuse(ClassOutside, "no action")
	}
	var reasons []error
	best, found := int64(0), false
	for _, detail := range d {
		l, err := detail.match(a)
		if err != nil {
			reasons = append(reasons, err)
			continue
		}
		rows := l.MaxRows
		if rows == 0 {
			rows = math.MaxInt64
		}
		best, found = max(best, rows), true
	}
	if !found {
		return Limits{}, wrap(ClassOutside, fmt.Errorf("%s lies outside the capability: %w", a.Name(), errors.Join(reasons...)))
	}
	if best == math.MaxInt64 {
		best = 0
	}
	return Limits{MaxRows: best}, nil
}

// ForTarget is the part of d that concerns one target, with it as the only
// location. It lies within d; it is empty when nothing concerns the target.
func (d Details) ForTarget(target spiffeid.ID) Details {
	var out Details
	for _, detail := range d {
		if one, ok := detail.at(target); ok {
			out = append(out, one)
		}
	}
	return out
}

// Validate refuses, with [ClassDetails], an empty list and malformed objects.
func (d Details) Validate() error {
	if len(d) == 0 || len(d) > maxDetails {
		return refuse(ClassDetails, "%d objects, want 1 to %d", len(d), maxDetails)
	}
	for i, detail := range d {
		if detail == nil {
			return refuse(ClassDetails, "object %d is empty", i)
		}
		if err := detail.validate(); err != nil {
			return wrap(ClassDetails, fmt.Errorf("object %d (%s): %w", i, detail.Type(), err))
		}
	}
	return nil
}

// ParseDetails reads authorization_details from JSON.
func ParseDetails(data []byte) (Details, error) {
	var d Details
	if err := strictjson.Unmarshal(data, &d); err != nil {
		return nil, jsonError(err)
	}
	return d, nil
}

func (d *Details) UnmarshalJSON(data []byte) error {
	var raw []json.RawMessage
	if err := strictjson.Unmarshal(data, &raw); err != nil {
		return err
	}
	out := make(Details, 0, len(raw))
	for i, r := range raw {
		detail, err := parseDetail(r)
		if err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
		out = append(out, detail)
	}
	if err := out.Validate(); err != nil {
		return err
	}
	*d = out
	return nil
}

func parseDetail(data []byte) (Detail, error) {
	kind, err := strictjson.StringMember(data, "type")
	if err != nil {
		return nil, err
	}
	switch kind {
	case postgresType:
		return parsePostgres(data)
	case sshType:
		return parseSSH(data)
	case httpType:
		return parseHTTP(data)
	case tcpType:
		return parseTCP(data)
	case mcpType:
		return parseMCP(data)
	case kubeType:
		return parseKube(data)
	}
	return nil, refuse(ClassDetails, "unknown type %q of authorization_details", kind)
}

// checkPlace checks what every capability has: where and what.
func checkPlace(at []spiffeid.ID, actions, known []string) error {
	if at == nil || actions == nil {
		return errors.New("locations and actions are required")
	}
	if err := errors.Join(checkList("locations", at), checkList("actions", actions)); err != nil {
		return err
	}
	for _, l := range at {
		if _, err := TargetName(l); err != nil {
			return err
		}
	}
	for _, a := range actions {
		if !contains(known, a) {
			return fmt.Errorf("unknown action %q; known are %s", a, strings.Join(known, ", "))
		}
	}
	return nil
}

// covers says whether every entry of child is one of parent's.
func covers[T comparable](parent, child []T) bool {
	for _, c := range child {
		if !contains(parent, c) {
			return false
		}
	}
	return true
}

func contains[T comparable](list []T, v T) bool {
	for _, l := range list {
		if l == v {
			return true
		}
	}
	return false
}

// entries are a list of a capability, and what each of it must be.
type entries struct {
	name  string
	list  []string
	check func(string) error
}

func checkEntries(all []entries) error {
	for _, e := range all {
		if err := checkList(e.name, e.list); err != nil {
			return err
		}
		for _, v := range e.list {
			if err := e.check(v); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
		}
	}
	return nil
}

// checkList refuses a list that is there but empty, too long, or says something
// twice. A nil list is an absent one.
func checkList[T comparable](name string, list []T) error {
	if list == nil {
		return nil
	}
	if len(list) == 0 || len(list) > maxList {
		return fmt.Errorf("%s has %d entries, want 1 to %d", name, len(list), maxList)
	}
	seen := make(map[T]bool, len(list))
	for _, v := range list {
		if seen[v] {
			return fmt.Errorf("%s says %v twice", name, v)
		}
		seen[v] = true
	}
	return nil
}
