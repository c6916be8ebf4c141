package kube

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/deputymesh/deputy/actor"
	"github.com/deputymesh/deputy/audit"
)

// The keys of a user's extra fields that carry the chain into the cluster's audit log. They have no characters that a header or RBAC
// (userextras/<key>) would spell otherwise.
const (
	extraUser   = "deputy-user"   // <issuer>#<subject>
	extraActors = "deputy-actors" // the SPIFFE ID of each agent, the first one first
	extraGrade  = "deputy-grade"  // the lowest grade of a hop
	extraTask   = "deputy-task"   // txn: the task at the root of the chain
	extraChain  = "deputy-chain"  // the digest of the credential, as records have it
	extraRecord = "deputy-record" // the record of this decision
)

// Extras are the keys, for whoever writes the ClusterRole of the proxy's account.
func Extras() []string {
	return []string{extraUser, extraActors, extraGrade, extraTask, extraChain, extraRecord}
}

// Identities say as whom users are in a cluster.
type Identities struct {
	// Prefixes are put before the subject of users, by issuer; users of other issuers have no name in the cluster. If it is nil, a user's name
	// is <issuer>#<subject>, as the API server's own default is (--oidc-username-prefix).
	Prefixes map[string]string
	// Groups are those that stand for a role.
	Groups map[string][]string
	// SystemGroups allows groups that begin with system:. system:masters is never one, since RBAC doesn't bind it.
	SystemGroups bool
}

const (
	system  = "system:"
	masters = "system:masters"
)

func (i Identities) check() error {
	for role, groups := range i.Groups {
		for _, g := range groups {
			switch {
			case g == masters:
				return fmt.Errorf("role %s: nobody is in the group %s by Deputy: RBAC doesn't bind it", role, masters)
			case strings.HasPrefix(g, system) && !i.SystemGroups:
				return fmt.Errorf("role %s: the group %s is the system's own; system_groups: true allows such", role, g)
			case !inHeader(g):
				return fmt.Errorf("role %s: %q is no name of a group", role, g)
			}
		}
	}
	for issuer, prefix := range i.Prefixes {
		if strings.HasPrefix(prefix, system) {
			return fmt.Errorf("users of %s would be the system's own: the prefix begins with %s", issuer, system)
		}
		// Who gives out subjects could give one that makes the name of another issuer's user.
		for other, longer := range i.Prefixes {
			if other != issuer && strings.HasPrefix(longer, prefix) {
				return fmt.Errorf("a user of %s could have the name of one of %s: the prefix %q begins with %q", issuer, other, longer, prefix)
			}
		}
	}
	return nil
}

// of is the user's name and groups in the cluster.
func (i Identities) of(user actor.SubjectID, roles []string) (name string, groups []string, err error) {
	name = user.String()
	if i.Prefixes != nil {
		prefix, known := i.Prefixes[user.Issuer]
		if !known {
			return "", nil, fmt.Errorf("users of the issuer %s have no name in this cluster", user.Issuer)
		}
		name = prefix + user.Subject
	}
	if user.Subject == "" || !inHeader(name) || strings.HasPrefix(strings.ToLower(name), system) {
		return "", nil, fmt.Errorf("the user's name is none that a cluster may hear: it is empty, can't stand in a header, or is one of the system's own")
	}
	for _, r := range roles {
		for _, g := range i.Groups[r] {
			if !slices.Contains(groups, g) {
				groups = append(groups, g)
			}
		}
	}
	return name, groups, nil
}

// inHeader says whether a header carries a text as it is.
func inHeader(s string) bool {
	return s != "" && len(s) <= 1024 && httpguts.ValidHeaderFieldValue(s) && s == strings.TrimSpace(s)
}

// impersonate says in a request's header who asks. Nothing of the agent's is left of it.
func impersonate(h http.Header, name string, groups []string, chain *actor.Chain, record audit.RecordID) error {
	for k := range h {
		if strings.HasPrefix(http.CanonicalHeaderKey(k), "Impersonate-") {
			delete(h, k)
		}
	}
	h.Set("Impersonate-User", name)
	for _, g := range groups {
		h.Add("Impersonate-Group", g)
	}
	var err error
	extra := func(key, value string) {
		if !inHeader(value) {
			err = fmt.Errorf("%s can't stand in a header", key)
		}
		h.Add("Impersonate-Extra-"+key, value)
	}
	extra(extraUser, chain.User.String())
	for _, hop := range chain.Hops {
		if hop.Kind == actor.HopAgent {
			extra(extraActors, hop.ID)
		}
	}
	extra(extraGrade, string(chain.LowestGrade()))
	extra(extraTask, chain.Txn)
	extra(extraChain, chain.Digest)
	extra(extraRecord, string(record))
	return err
}
