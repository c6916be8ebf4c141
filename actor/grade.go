package actor

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
)

// Grade is how the issuer knows who a hop is.
type Grade string

const (
	// Asserted: said by the process or its parent, not proven.
	Asserted Grade = "asserted"
	// Attested: the kernel or platform vouched for a process that its parent
	// can't reach; for the user, the identity provider vouched for the login key.
	Attested Grade = "attested"
)

// Evidence is what the issuer saw when it graded. The zero value is none.
// A hash of an interpreter is not a hash of the script that it runs.
type Evidence struct {
	// Kind names the attestor, such as unix or container: [a-z][a-z0-9-]{0,31}.
	// An empty Kind means that nothing was seen, and then all else is empty.
	Kind   string `json:"kind"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Path   string `json:"path,omitempty"`   // of the executable
	SHA256 string `json:"sha256,omitempty"` // of the executable, 64 lower-case hexadecimal digits
	Cgroup string `json:"cgroup,omitempty"`
}

const maxEvidenceText = 1024

// oidGrade is the SVID extension that carries the grade. 32473 is the private
// enterprise number that RFC 5612 reserves for documentation; a registered one
// replaces it before anybody else reads these certificates.
var oidGrade = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1, 1}

const gradeVersion = 1

type gradeASN1 struct {
	Version  int
	Grade    asn1.Enumerated
	Evidence evidenceASN1 `asn1:"optional"`
}

type evidenceASN1 struct {
	Kind   string `asn1:"utf8"`
	UID    int64
	GID    int64
	Path   string `asn1:"utf8"`
	SHA256 []byte
	Cgroup string `asn1:"utf8"`
}

type gradeOnlyASN1 struct {
	Version int
	Grade   asn1.Enumerated
}

// GradeExtension makes the non-critical SVID extension. Only an issuer calls it.
func GradeExtension(g Grade, e Evidence) (pkix.Extension, error) {
	number := map[Grade]asn1.Enumerated{Asserted: 0, Attested: 1}
	n, ok := number[g]
	if !ok {
		return pkix.Extension{}, refuse(ClassGrade, "unknown grade %q", g)
	}
	if err := e.check(g); err != nil {
		return pkix.Extension{}, err
	}
	var value any = gradeOnlyASN1{gradeVersion, n}
	if e.Kind != "" {
		sum, _ := hex.DecodeString(e.SHA256)
		value = gradeASN1{gradeVersion, n, evidenceASN1{e.Kind, int64(e.UID), int64(e.GID), e.Path, sum, e.Cgroup}}
	}
	der, err := asn1.Marshal(value)
	if err != nil {
		return pkix.Extension{}, wrap(ClassGrade, err)
	}
	return pkix.Extension{Id: oidGrade, Value: der}, nil
}

func (e Evidence) check(g Grade) error {
	if e.Kind == "" {
		if e != (Evidence{}) {
			return refuse(ClassGrade, "evidence without a kind")
		}
		if g == Attested {
			return refuse(ClassGrade, "attested without evidence")
		}
		return nil
	}
	if !isName(e.Kind) {
		return refuse(ClassGrade, "%q is not a kind of evidence", e.Kind)
	}
	if e.SHA256 != "" {
		if b, err := hex.DecodeString(e.SHA256); err != nil || len(b) != 32 || hex.EncodeToString(b) != e.SHA256 {
			return refuse(ClassGrade, "sha256 is not 64 lower-case hexadecimal digits")
		}
	}
	if err := firstError(checkText("path", e.Path, 0, maxEvidenceText), checkText("cgroup", e.Cgroup, 0, maxEvidenceText)); err != nil {
		return wrap(ClassGrade, err)
	}
	return nil
}

// GradeFromCertificate reads the grade that the issuer put into an SVID. The
// certificate's path must have been verified. No extension is Asserted, without
// evidence; a malformed or critical one is refused with [ClassGrade].
func GradeFromCertificate(c *x509.Certificate) (Grade, Evidence, error) {
	var found *pkix.Extension
	for i := range c.Extensions {
		if !c.Extensions[i].Id.Equal(oidGrade) {
			continue
		}
		if found != nil {
			return "", Evidence{}, refuse(ClassGrade, "the extension appears twice")
		}
		found = &c.Extensions[i]
	}
	if found == nil {
		return Asserted, Evidence{}, nil
	}
	if found.Critical {
		return "", Evidence{}, refuse(ClassGrade, "the extension is critical")
	}
	g, e, err := parseGrade(found.Value)
	if err != nil {
		return "", Evidence{}, err
	}
	// One encoding only: what doesn't come out the same is not DER as we write it.
	again, err := GradeExtension(g, e)
	if err != nil {
		return "", Evidence{}, err
	}
	if !bytes.Equal(again.Value, found.Value) {
		return "", Evidence{}, refuse(ClassGrade, "the extension is not in canonical DER")
	}
	return g, e, nil
}

func parseGrade(der []byte) (Grade, Evidence, error) {
	var v gradeASN1
	rest, err := asn1.Unmarshal(der, &v)
	if err != nil {
		return "", Evidence{}, wrap(ClassGrade, fmt.Errorf("reading the extension: %w", err))
	}
	if len(rest) > 0 || v.Version != gradeVersion {
		return "", Evidence{}, refuse(ClassGrade, "trailing bytes or version %d", v.Version)
	}
	var g Grade
	switch v.Grade {
	case 0:
		g = Asserted
	case 1:
		g = Attested
	default:
		return "", Evidence{}, refuse(ClassGrade, "unknown grade %d", v.Grade)
	}
	const maxID = 1<<32 - 1
	if v.Evidence.UID < 0 || v.Evidence.UID > maxID || v.Evidence.GID < 0 || v.Evidence.GID > maxID {
		return "", Evidence{}, refuse(ClassGrade, "uid or gid out of range")
	}
	return g, Evidence{
		Kind: v.Evidence.Kind, UID: uint32(v.Evidence.UID), GID: uint32(v.Evidence.GID),
		Path: v.Evidence.Path, SHA256: hex.EncodeToString(v.Evidence.SHA256), Cgroup: v.Evidence.Cgroup,
	}, nil
}
