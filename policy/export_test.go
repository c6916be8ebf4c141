package policy

import (
	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// DecideByFullSet decides without the action index.
func DecideByFullSet(s *Set, r Request) Decision {
	return s.decide(r, func(types.EntityUID) cedar.PolicyIterator { return s.every })
}

// ParseResourceForTest sends a resource through its entity id and back.
func ParseResourceForTest(r Resource) (Resource, error) { return parseResource(r.uid()) }
