package policy

import (
	_ "embed"
	"fmt"
	"slices"
	"sync"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// SchemaID names the vocabulary that a policy set is written in. A set with another id doesn't load.
const SchemaID = "deputy-policy/1"

//go:embed schema.cedarschema
var schemaText []byte

// SchemaText is the Cedar schema of [SchemaID], for editors and other Cedar tools.
func SchemaText() string { return string(schemaText) }

const (
	typeAction        types.EntityType = "Deputy::Action"
	typeRole          types.EntityType = "Deputy::Role"
	typeUser          types.EntityType = "Deputy::User"
	typeTargetGroup   types.EntityType = "Deputy::TargetGroup"
	typeTarget        types.EntityType = "Deputy::Target"
	typeDatabase      types.EntityType = "Deputy::Database"
	typeTable         types.EntityType = "Deputy::Table"
	typeFunction      types.EntityType = "Deputy::Function"
	typeSetting       types.EntityType = "Deputy::Setting"
	typeChannel       types.EntityType = "Deputy::Channel"
	typeAccount       types.EntityType = "Deputy::Account"
	typeExec          types.EntityType = "Deputy::Exec"
	typeSubsystem     types.EntityType = "Deputy::Subsystem"
	typePath          types.EntityType = "Deputy::Path"
	typeForward       types.EntityType = "Deputy::Forward"
	typeService       types.EntityType = "Deputy::Service"
	typeEndpoint      types.EntityType = "Deputy::Endpoint"
	typeTool          types.EntityType = "Deputy::Tool"
	typeMCPResource   types.EntityType = "Deputy::McpResource"
	typePrompt        types.EntityType = "Deputy::Prompt"
	typeKubeNamespace types.EntityType = "Deputy::KubeNamespace"
	typeKubeResource  types.EntityType = "Deputy::KubeResource"
	typeKubePath      types.EntityType = "Deputy::KubePath"
	typeGrade         types.EntityType = "Deputy::Grade"
	typeEvidence      types.EntityType = "Deputy::Evidence"
)

// vocabulary is the parsed schema: a validator, and the action entities with the groups they stand in.
type vocabulary struct {
	validator *validate.Validator
	// actions holds every action and group. Without these entities `action in Action::"read"` would
	// never match, and Cedar wouldn't say so.
	actions types.EntityMap
	// applies holds the actions that a request can name (groups are left out), with the resource types
	// they apply to.
	applies map[types.EntityUID][]types.EntityType
	// enums holds the values of the enumerations; Cedar's validator doesn't check them in conditions.
	enums map[types.EntityType][]types.EntityUID
}

var loadVocabulary = sync.OnceValues(func() (*vocabulary, error) {
	var s schema.Schema
	s.SetFilename("schema.cedarschema")
	if err := s.UnmarshalCedar(schemaText); err != nil {
		return nil, fmt.Errorf("parsing the built-in policy schema: %w", err)
	}
	r, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("resolving the built-in policy schema: %w", err)
	}
	return newVocabulary(r), nil
})

func newVocabulary(r *resolved.Schema) *vocabulary {
	v := &vocabulary{
		validator: validate.New(r, validate.WithStrict()),
		actions:   types.EntityMap{},
		applies:   map[types.EntityUID][]types.EntityType{},
		enums:     map[types.EntityType][]types.EntityUID{},
	}
	for name, e := range r.Enums {
		v.enums[name] = e.Values
	}
	for uid, a := range r.Actions {
		v.actions[uid] = a.Entity
		if a.AppliesTo != nil {
			v.applies[uid] = a.AppliesTo.Resources
		}
	}
	return v
}

// members are the request actions that are uid or stand, at any depth, in the group uid.
func (v *vocabulary) members(uid types.EntityUID) []types.EntityUID {
	var out []types.EntityUID
	for a := range v.applies {
		if v.within(a, uid) {
			out = append(out, a)
		}
	}
	return out
}

func (v *vocabulary) within(action, group types.EntityUID) bool {
	if action == group {
		return true
	}
	for p := range v.actions[action].Parents.All() {
		if v.within(p, group) {
			return true
		}
	}
	return false
}

// Actions names every action that a request can be about, such as "postgres:select", sorted.
func Actions() []string {
	v, err := loadVocabulary()
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(v.applies))
	for a := range v.applies {
		names = append(names, string(a.ID))
	}
	slices.Sort(names)
	return names
}
