package actor

import (
	"errors"
	"fmt"

	"github.com/deputymesh/deputy/internal/strictjson"
)

// Class says which rule of the specification was broken. The strings are
// stable: they stand in docs/spec/credential.md and in the test vectors.
type Class string

// NoHop is the hop of an error that belongs to no single grant.
const NoHop = -1

const (
	// The peer of the connection.
	ClassPeerCertificate Class = "peer.certificate"  // no SVID, or no path to the bundle
	ClassPeerTrustDomain Class = "peer.trust-domain" // not our own trust domain

	// The string as a whole, before any cryptography.
	ClassSize     Class = "credential.size"
	ClassAlphabet Class = "credential.alphabet"
	ClassParts    Class = "credential.parts" // empty part, too many, or not compact JWS
	ClassOrder    Class = "credential.order" // parts of a known kind in a wrong place
	ClassBase64   Class = "credential.base64"

	// Strict JSON.
	ClassJSONSyntax    Class = "json.syntax"
	ClassJSONUTF8      Class = "json.utf8"
	ClassJSONTrailing  Class = "json.trailing"
	ClassJSONDuplicate Class = "json.duplicate"
	ClassJSONCase      Class = "json.case"
	ClassJSONUnknown   Class = "json.unknown"
	ClassJSONMissing   Class = "json.missing"
	ClassJSONType      Class = "json.type"
	ClassJSONRange     Class = "json.range"
	ClassJSONDepth     Class = "json.depth"

	// JOSE headers.
	ClassHeaderMember Class = "header.member" // jku, x5u, crit, foreign jwk …
	ClassHeaderType   Class = "header.typ"
	ClassHeaderAlg    Class = "header.alg"
	ClassHeaderKey    Class = "header.key" // jwk or x5c is not a P-256 public key

	// Values of claims that no other class covers.
	ClassClaim    Class = "claim.value"
	ClassNotAgent Class = "actor.not-agent"

	// The delegated token.
	ClassTokenKey       Class = "token.key" // unknown kid, or key not valid now
	ClassTokenSignature Class = "token.signature"
	ClassTokenIssuer    Class = "token.issuer"
	ClassTokenAudience  Class = "token.audience"
	ClassTokenNotYet    Class = "token.not-yet"
	ClassTokenExpired   Class = "token.expired"
	ClassTokenLifetime  Class = "token.lifetime"

	// The presenter.
	ClassPresenterActor   Class = "presenter.actor"   // peer is not act.sub
	ClassPresenterClient  Class = "presenter.client"  // client_id is not act.sub
	ClassPresenterBinding Class = "presenter.binding" // certificate is not cnf.x5t#S256

	// The shape of the chain.
	ClassActorCount       Class = "actor.count"
	ClassActorTrustDomain Class = "actor.trust-domain"
	ClassActorRepeated    Class = "actor.repeated"
	ClassActorGrants      Class = "actor.grants" // act and grants name different actors

	// The grants.
	ClassUserGrantMissing  Class = "root.user-grant"
	ClassGrantHead         Class = "grant.head"
	ClassGrantTrustDomain  Class = "grant.trust-domain"
	ClassGrantCertificate  Class = "grant.certificate"
	ClassGrantIssuer       Class = "grant.issuer" // leaf's SPIFFE ID is not iss
	ClassGrantSignature    Class = "grant.signature"
	ClassGrantNotYet       Class = "grant.not-yet"
	ClassGrantExpired      Class = "grant.expired"
	ClassGrantOutlivesSVID Class = "grant.outlives-svid"
	ClassGrantMesh         Class = "grant.mesh"
	ClassGrantTxn          Class = "grant.txn"
	ClassGrantSubject      Class = "grant.subject"
	ClassGrantPrevious     Class = "grant.prh"
	ClassGrantDelegate     Class = "grant.delegate" // iss is not the delegate before
	ClassGrantChild        Class = "grant.child"    // delegate is no direct child
	ClassGrantLeft         Class = "grant.left"
	ClassGrantExp          Class = "grant.exp" // ends after the grant before
	ClassGrantCap          Class = "grant.cap"
	ClassTokenOutlives     Class = "token.outlives" // token ends after grants or SVID
	ClassTokenPurpose      Class = "token.purpose"
	ClassTokenDetails      Class = "token.details" // not within the last cap

	// The root.
	ClassIDTokenMissing Class = "root.id-token-missing"
	ClassRootHash       Class = "root.hash"
	ClassIDToken        Class = "root.id-token"
	ClassIDTokenExpired Class = "root.id-token-expired"
	ClassRootSubject    Class = "root.subject" // iss and sub differ
	ClassRootNonce      Class = "root.nonce"
	ClassRootSession    Class = "root.sid"
	ClassRootAuthTime   Class = "root.auth-time" // auth_time or acr differ
	ClassRootAge        Class = "root.age"       // session past its maximum

	ClassGrade   Class = "grade.extension"
	ClassRevoked Class = "revoked"
	// ClassRevocationUnknown: the verifier could not know.
	ClassRevocationUnknown Class = "revocation.unknown"
	ClassExpired           Class = "chain.expired"

	// Details: narrowing and matching.
	ClassDetails Class = "details.value"  // malformed or unknown
	ClassWider   Class = "details.wider"  // not within the parent
	ClassOutside Class = "action.outside" // not within the details

	// Statements beside the credential.
	ClassKeyStatement    Class = "key-statement"
	ClassOperatorRequest Class = "operator-request"
	ClassChain           Class = "chain-statement"
)

// Error is a refusal. Err says what was wrong for people; it never holds a
// token, a signature or a key.
type Error struct {
	Class Class
	// Hop counts from the root: 0 is the user grant, n the grant of the n-th
	// agent, [NoHop] what belongs to no grant.
	Hop int
	Err error
}

func (e *Error) Error() string {
	if e.Hop >= 0 {
		return fmt.Sprintf("%s (hop %d): %v", e.Class, e.Hop, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.Class, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// ClassOf is the class of the outermost [Error] in err, or "".
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return ""
}

func refuse(c Class, format string, args ...any) error {
	return &Error{Class: c, Hop: NoHop, Err: fmt.Errorf(format, args...)}
}

func wrap(c Class, err error) error { return &Error{Class: c, Hop: NoHop, Err: err} }

// atHop says at which hop err happened, unless it says so already.
func atHop(hop int, err error) error {
	var e *Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	if e.Hop >= 0 {
		return err
	}
	return &Error{Class: e.Class, Hop: hop, Err: e.Err}
}

// jsonError gives a refusal of the strict decoder its class. A refusal that
// already has one, from a type's own UnmarshalText, keeps it.
func jsonError(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return &Error{Class: e.Class, Hop: e.Hop, Err: err}
	}
	for _, c := range []struct {
		sentinel error
		class    Class
	}{
		{strictjson.ErrUTF8, ClassJSONUTF8},
		{strictjson.ErrTrailing, ClassJSONTrailing},
		{strictjson.ErrDuplicate, ClassJSONDuplicate},
		{strictjson.ErrCase, ClassJSONCase},
		{strictjson.ErrUnknown, ClassJSONUnknown},
		{strictjson.ErrMissing, ClassJSONMissing},
		{strictjson.ErrType, ClassJSONType},
		{strictjson.ErrRange, ClassJSONRange},
		{strictjson.ErrDepth, ClassJSONDepth},
		{strictjson.ErrSyntax, ClassJSONSyntax},
		{strictjson.ErrBase64, ClassBase64},
	} {
		if errors.Is(err, c.sentinel) {
			return wrap(c.class, err)
		}
	}
	return wrap(ClassClaim, err)
}
