package audit_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/deputymesh/deputy/audit"
)

// logCase is one vector before it is packed.
type logCase struct {
	name, rule string
	segments   map[string][]byte
	keys       func(*audit.Keys)
	pruned     bool
	seen       []string
	status     int
	finding    audit.ProblemKind
}

const (
	ruleFiles   = "files"
	ruleFrames  = "frames"
	ruleSigned  = "checkpoints"
	ruleRecords = "records"
	ruleLinks   = "links"
	ruleChains  = "credentials"
)

const zerothSegment = "0000000000000000.segment"

func logCases(t testing.TB) []logCase {
	t.Helper()
	var out []logCase
	out = append(out, validLogs(t)...)
	out = append(out, brokenFiles(t)...)
	out = append(out, brokenSignatures(t)...)
	out = append(out, brokenRecords(t)...)
	return append(out, brokenChains(t)...)
}

func good(rule, name string, s *tale) logCase {
	return logCase{name: name, rule: rule, segments: s.segments}
}

func found(kind audit.ProblemKind, rule, name string, s *tale) logCase {
	return logCase{name: name, rule: rule, segments: s.segments, status: 2, finding: kind}
}

// frameAt is where the n-th frame of a segment begins.
func frameAt(segment []byte, n int) int {
	for at := 4096; ; at += 4096 {
		if bytes.HasPrefix(segment[at:], []byte("DPTYFRM1")) {
			if n == 0 {
				return at
			}
			n--
		}
	}
}

func brokenFiles(t testing.TB) []logCase {
	tamper := func(change func(first, second []byte, s *tale)) *tale {
		s := newPlainTale(t, nil).whole()
		change(s.segments[zerothSegment], s.segments[secondSegment], s)
		return s
	}
	single := func(change func(data []byte, s *tale)) *tale {
		s := newPlainTale(t, nil)
		s.first()
		change(s.segments[zerothSegment], s)
		return s
	}
	three := newPlainTale(t, nil).whole()
	three.segments[thirdSegment] = three.segments[secondSegment]
	delete(three.segments, secondSegment)
	lateNumber := newPlainTale(t, nil)
	lateNumber.first()
	lateNumber.segments["0000000000000003.segment"] = lateNumber.segments[zerothSegment]
	delete(lateNumber.segments, zerothSegment)
	binary.BigEndian.PutUint64(lateNumber.segments["0000000000000003.segment"][8:], 3)
	mendHeader(lateNumber.segments["0000000000000003.segment"])
	rolled := found(audit.ProblemRolledBack, ruleSigned, "the last segment taken away, where its checkpoint was seen", newPlainTale(t, nil).whole())
	full := newPlainTale(t, nil).whole()
	delete(rolled.segments, secondSegment)
	rolled.seen = []string{string(full.seen[len(full.leaves)])}
	fork := newPlainTale(t, func(s *tale) {
		s.rewrite = map[int]func(string) string{0: func(r string) string { return strings.Replace(r, `"deputy"`, `"another"`, 1) }}
	}).whole()
	forked := found(audit.ProblemRolledBack, ruleSigned, "another checkpoint of the same size was seen", full)
	forked.seen = []string{string(fork.seen[1])}
	prunedFork := newPlainTale(t, nil).whole()
	delete(prunedFork.segments, zerothSegment)
	prunedForked := found(audit.ProblemRolledBack, ruleSigned, "pruned at another checkpoint than the one that was seen", prunedFork)
	n := binary.BigEndian.Uint64(prunedFork.segments[secondSegment][24:])
	prunedForked.pruned, prunedForked.seen = true, []string{string(fork.seen[int(n)])}
	late := newPlainTale(t, nil).whole()
	delete(late.segments, zerothSegment)
	return []logCase{
		found(audit.ProblemMissing, ruleFiles, "a number left out", three),
		found(audit.ProblemMissing, ruleFiles, "a first segment that isn't number 0, before the first record", lateNumber),
		found(audit.ProblemPruned, ruleFiles, "pruned, and the operator doesn't know", late),
		found(audit.ProblemHeader, ruleFiles, "a header's checksum", tamper(func(_, second []byte, _ *tale) { second[4095] ^= 1 })),
		found(audit.ProblemHeader, ruleFiles, "a header with another number", tamper(func(_, second []byte, _ *tale) { second[15] = 7; mendHeader(second) })),
		found(audit.ProblemHeader, ruleFiles, "a header with another peak", tamper(func(_, second []byte, _ *tale) { second[41] ^= 1; mendHeader(second) })),
		found(audit.ProblemHeader, ruleFiles, "a header with bytes behind its checkpoint", tamper(func(_, second []byte, _ *tale) { second[4000] = 1; mendHeader(second) })),
		found(audit.ProblemHeader, ruleFiles, "a finished header that makes no sense isn't blank", single(func(_ []byte, s *tale) {
			data := make([]byte, bookSegment)
			copy(data, "DPTYSEG1")
			data[15] = 1
			mendHeader(data)
			s.segments[secondSegment] = data
		})),
		found(audit.ProblemHeader, ruleFiles, "a blank segment with something behind its first block", single(func(_ []byte, s *tale) {
			s.segments[secondSegment] = make([]byte, bookSegment)
			s.segments[secondSegment][9000] = 1
		})),
		found(audit.ProblemHeader, ruleFiles, "a blank segment in the middle", tamper(func(_, second []byte, s *tale) {
			s.segments[thirdSegment] = second
			s.segments[secondSegment] = make([]byte, bookSegment)
		})),
		found(audit.ProblemTruncated, ruleFiles, "a file that was cut", tamper(func(first, _ []byte, s *tale) { s.segments[zerothSegment] = first[:len(first)-4096] })),
		found(audit.ProblemFrame, ruleFrames, "a byte of a record", tamper(func(first, _ []byte, _ *tale) { first[frameAt(first, 2)+100] ^= 1 })),
		found(audit.ProblemFrame, ruleFrames, "a frame's header", tamper(func(first, _ []byte, _ *tale) { first[frameAt(first, 2)+19] ^= 1 })),
		found(audit.ProblemFrame, ruleFrames, "a byte behind the frames of a finished segment", tamper(func(first, _ []byte, _ *tale) { first[len(first)-1] = 1 })),
		found(audit.ProblemFrame, ruleFrames, "a damaged frame before a whole one", single(func(data []byte, _ *tale) { data[frameAt(data, 3)+60] ^= 1 })),
		found(audit.ProblemFrame, ruleFrames, "a whole last frame with something behind it in its block", single(func(data []byte, s *tale) { data[s.at-1] = 1 })),
		found(audit.ProblemTree, ruleFrames, "a record changed, checksums mended", tamper(func(first, _ []byte, _ *tale) {
			at := frameAt(first, 2)
			i := bytes.Index(first[at:], []byte("postgres"))
			copy(first[at+i:], "Postgres")
			mend(first[at:])
		})),
		found(audit.ProblemTree, ruleFrames, "a frame taken out", single(func(data []byte, _ *tale) {
			at := frameAt(data, 3)
			copy(data[at:], data[at+4096:])
		})),
		found(audit.ProblemTree, ruleFrames, "a frame twice", single(func(data []byte, s *tale) { copy(data[s.at:], data[s.at-4096:s.at]) })),
		found(audit.ProblemTree, ruleFrames, "a whole last frame whose first seq is beyond all numbers", single(func(data []byte, s *tale) {
			at := s.at - 4096
			data[at+8] = 0xff
			mend(data[at:])
		})),
		rolled, forked, prunedForked,
	}
}

func brokenSignatures(t testing.TB) []logCase {
	resigned := func(change func(msg string) string) *tale {
		s := newPlainTale(t, nil)
		s.first()
		// The last frame again, with another checkpoint.
		data := s.segments[zerothSegment]
		at := s.at - 4096
		body := bytes.Clone(data[at+40 : at+40+int(binary.BigEndian.Uint32(data[at+20:]))])
		first := int(binary.BigEndian.Uint64(data[at+8:]))
		clear(data[at:s.at])
		s.at = at
		s.raw(first, 1, body, []byte(change(string(s.last))))
		return s
	}
	other, otherLine := bookKey(bookOrigin, "somebody else")
	foreign, foreignLine := bookKey("corp.example/proxy/other", "log key")
	witness, witnessLine := bookKey("witness.example/w1", "witness")
	byOther := newPlainTale(t, func(s *tale) { s.key = other }).whole()
	origin := newPlainTale(t, nil)
	open := origin.first()
	origin.key, origin.origin = foreign, "corp.example/proxy/other"
	origin.second(open)
	originCase := found(audit.ProblemSignature, ruleSigned, "another origin in the middle, its key listed", origin)
	originCase.keys = func(k *audit.Keys) { k.Logs = append(k.Logs, foreignLine) }
	witnessOnly := found(audit.ProblemSignature, ruleSigned, "signed by a listed key of another name only", newPlainTale(t, func(s *tale) { s.key = witness }).whole())
	witnessOnly.keys = func(k *audit.Keys) { k.Logs = append(k.Logs, witnessLine) }
	twice := good(ruleSigned, "a log key listed twice", newPlainTale(t, nil).whole())
	twice.status, twice.keys = 1, func(k *audit.Keys) { k.Logs = append(k.Logs, k.Logs[0]) }
	none := good(ruleSigned, "no log key", newPlainTale(t, nil).whole())
	none.status, none.keys = 1, func(k *audit.Keys) { k.Logs = nil }
	otherListed := found(audit.ProblemSignature, ruleSigned, "another key listed", newPlainTale(t, nil).whole())
	otherListed.keys = func(k *audit.Keys) { k.Logs = []string{otherLine} }
	return []logCase{
		found(audit.ProblemSignature, ruleSigned, "a forged log: another key of the same name", byOther), originCase, witnessOnly, twice, none, otherListed,
		found(audit.ProblemSignature, ruleSigned, "a bit of a signature", resigned(func(m string) string { return m[:len(m)-20] + flip(m[len(m)-20]) + m[len(m)-19:] })),
		found(audit.ProblemSignature, ruleSigned, "stray bits in a signature's base64", resigned(func(m string) string {
			return m[:len(m)-3] + string(m[len(m)-3]+1) + m[len(m)-2:]
		})),
		found("", ruleSigned, "an extension line that isn't signed", resigned(func(m string) string { return strings.Replace(m, "\n\n", "\nextension\n\n", 1) })),
		found("", ruleSigned, "a size with a leading zero", resigned(func(m string) string { return strings.Replace(m, "\n", "\n0", 1) })),
		found("", ruleSigned, "no signature", resigned(func(m string) string { return m[:strings.Index(m, "\n\n")+2] })),
		found("", ruleSigned, "text behind the signature", resigned(func(m string) string { return m + "x" })),
	}
}

// flip is another letter of base64.
func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

func brokenRecords(t testing.TB) []logCase {
	// The records of the story: 0 log_opened, 1 to 6 evidence, 7 chain, 8 connection_opened, 9 decision, 10 masked, 11 completed,
	// 12 the refusal, 13 refused, 14 the open decision; 15 log_segment, 16 chain, 17 forwarded, 18 completed, 19 heartbeat, 20 log_closed.
	changed := func(kind audit.ProblemKind, rule, name string, seq int, change func(string) string) logCase {
		return found(kind, rule, name, newPlainTale(t, func(s *tale) {
			s.rewrite = map[int]func(string) string{seq: func(r string) string {
				out := change(r)
				if out == r {
					t.Fatalf("%s: nothing to change in record %d: %s", name, seq, r)
				}
				return out
			}}
		}).whole())
	}
	told := func(kind audit.ProblemKind, rule, name string, seq int, old, new string) logCase {
		return changed(kind, rule, name, seq, func(r string) string { return strings.Replace(r, old, new, 1) })
	}
	const r = audit.ProblemRecord
	blind := newPlainTale(t, func(s *tale) {
		s.rewrite = map[int]func(string) string{12: func(r string) string { return strings.Replace(r, bookID(8), bookID(3), 1) }}
	}).whole()
	delete(blind.segments, zerothSegment)
	blindCase := found(audit.ProblemLink, ruleLinks, "pruned: an outcome of a decision that the first segment doesn't list", blind)
	blindCase.pruned = true
	return []logCase{
		told(r, ruleRecords, "seq is another position", 5, `{"seq":5`, `{"seq":6`),
		told(r, ruleRecords, "a duplicate member", 2, `"protocol"`, `"target":"x","protocol"`),
		told(r, ruleRecords, "an unknown member", 2, `"source"`, `"note":"x","source"`),
		told(r, ruleRecords, "an unknown member of an event", 2, `"protocol"`, `"note":"x","protocol"`),
		told(r, ruleRecords, "an unknown member of a hop", 1, `{"kind":"user"`, `{"note":"approved","kind":"user"`),
		told(r, ruleRecords, "a hop of an unknown grade", 1, `"grade":"attested"`, `"grade":"certain"`),
		told(r, ruleRecords, "root evidence of an unknown kind", 1, `"root_evidence":"verified"`, `"root_evidence":"certain"`),
		told(r, ruleRecords, "a member in other case", 2, `"protocol"`, `"Protocol"`),
		told(r, ruleRecords, "another version", 2, `"v":2`, `"v":3`),
		told(r, ruleRecords, "an unknown type", 2, `"type":"connection_opened"`, `"type":"connection"`),
		told(r, ruleRecords, "time is null", 2, `"time":"2026-11-20T12:02:00.002Z"`, `"time":null`),
		told(r, ruleRecords, "time in another zone", 2, `00.002Z`, `00.002+00:00`),
		told(r, ruleRecords, "ten digits of a second", 2, `00.002Z`, `00.0020000000Z`),
		told(r, ruleRecords, "an id of UUID version 4", 2, `-7000-8000-000000000002`, `-4000-8000-000000000002`),
		told(r, ruleRecords, "an id of another variant", 2, `-7000-8000-000000000002`, `-7000-c000-000000000002`),
		told(r, ruleRecords, "a decision that is there and empty", 7, `"source"`, `"decision":"","source"`),
		told(r, ruleRecords, "an id in upper case", 2, `0193498d-`, `0193498D-`),
		told(r, ruleRecords, "source is no SPIFFE ID", 2, `"source":"spiffe:`, `"source":"https:`),
		told(r, ruleRecords, "a chain's name that is no digest", 2, `"chain":"sha256:`, `"chain":"sha-256:`),
		changed(r, ruleRecords, "a chain that wasn't stated", 2, func(r string) string {
			i := strings.Index(r, `"chain":"sha256:`) + len(`"chain":"sha256:`)
			return r[:i] + strings.Repeat("0", 64) + r[i+64:]
		}),
		changed(r, ruleRecords, "a chain that was stated in another segment only", 10, func(r string) string {
			i := strings.Index(r, `"event":`)
			return strings.Replace(r[:i], `"type":"chain"`, `"type":"log_closed"`, 1) + `"event":{"reason":"x"}}`
		}),
		told(r, ruleRecords, "an unknown status", 5, `"status":"ok"`, `"status":"fine"`),
		told(r, ruleRecords, "a decision that neither allows nor refuses", 3, `"effect":"allow"`, `"effect":"maybe"`),
		told(r, ruleRecords, "a refusal without a class", 6, `"class":"policy",`, ``),
		told(r, ruleRecords, "a required text that is empty", 3, `"target":"orders"`, `"target":""`),
		told(r, ruleRecords, "a number with a fraction", 5, `"rows":1`, `"rows":1.0`),
		told(r, ruleRecords, "not JSON", 7, `{"seq"`, `{seq`),
		told(audit.ProblemLink, ruleLinks, "an outcome of nothing", 5, bookID(3), bookID(1)),
		told(audit.ProblemLink, ruleLinks, "an outcome without a decision", 5, `"decision":"`+bookID(3)+`",`, ``),
		told(audit.ProblemLink, ruleLinks, "an outcome of a refusal", 5, bookID(3), bookID(6)),
		told(audit.ProblemLink, ruleLinks, "a second outcome", 12, bookID(8), bookID(3)),
		told(audit.ProblemLink, ruleLinks, "forwarded after its outcome", 11, bookID(8), bookID(3)),
		told(audit.ProblemLink, ruleLinks, "a segment that lists a decision that isn't open", 9, bookID(8), bookID(3)),
		told(audit.ProblemLink, ruleLinks, "a segment that lists an open decision under another seq", 9, `"seq":8}`, `"seq":7}`),
		blindCase,
	}
}

func validLogs(t testing.TB) []logCase {
	whole := newTale(t, nil).whole()
	pruned := newTale(t, func(s *tale) { s.again = true }).whole()
	delete(pruned.segments, zerothSegment)
	prunedCase := good(ruleFiles, "pruned, which the operator says", pruned)
	prunedCase.pruned, prunedCase.seen = true, []string{string(pruned.seen[len(pruned.leaves)])}
	seen := good(ruleSigned, "with checkpoints that were seen before", whole)
	for _, n := range []int{1, len(whole.leaves)} {
		seen.seen = append(seen.seen, string(whole.seen[n]))
	}
	torn := newPlainTale(t, nil)
	torn.first()
	copy(torn.segments[zerothSegment][torn.at:], "DPTYFRM1 and something that was being written")
	tornCase := good(ruleFrames, "torn tail", torn)
	tornCase.status = 3
	hole := newPlainTale(t, nil)
	hole.first()
	hole.segments[zerothSegment][hole.at+5000] = 1
	holeCase := good(ruleFrames, "torn tail whose first block was lost", hole)
	holeCase.status = 3
	blank := newPlainTale(t, nil).whole()
	blank.segments[thirdSegment] = make([]byte, bookSegment)
	copy(blank.segments[thirdSegment], "DPTYSEG1 half a header")
	rotated := newPlainTale(t, nil)
	open := rotated.first()
	newKey, newLine := bookKey(bookOrigin, "next log key")
	rotated.key = newKey
	rotated.second(open)
	rotatedCase := good(ruleSigned, "a key that changed, both listed", rotated)
	rotatedCase.keys = func(k *audit.Keys) { k.Logs = append(k.Logs, newLine) }
	witness, _ := bookKey("witness.example/w1", "witness")
	cosigned := newPlainTale(t, func(s *tale) { s.extra = []note.Signer{witness} }).whole()
	empty := newPlainTale(t, func(s *tale) {
		s.rewrite = map[int]func(string) string{7: func(r string) string { return strings.Replace(r, `"source"`, `"dev":false,"txn":"","source"`, 1) }}
	}).whole()
	spaced := newPlainTale(t, func(s *tale) {
		s.rewrite = map[int]func(string) string{0: func(r string) string { return strings.Replace(r, `,"v":2`, " ,\t\"v\" : 2", 1) }}
	}).whole()
	return []logCase{
		good("valid", "two segments, a session, a refusal, an open decision carried over", whole), prunedCase, seen, tornCase, holeCase,
		good(ruleFiles, "a next segment that was being prepared", blank), rotatedCase,
		good(ruleSigned, "signed by a witness, too", cosigned),
		good(ruleRecords, "optional members that are there and empty", empty),
		good(ruleRecords, "white space", spaced),
	}
}

func brokenChains(t testing.TB) []logCase {
	const c = audit.ProblemCredential
	told := func(name string, change func(*tale)) logCase {
		return found(c, ruleChains, name, newTale(t, change).whole())
	}
	verification := func(name, old, new string) logCase {
		return told(name, func(s *tale) {
			s.verification = func(d string) string {
				if !strings.Contains(d, old) {
					t.Fatalf("%s: %q isn't in %s", name, old, d)
				}
				return strings.Replace(d, old, new, 1)
			}
		})
	}
	// A chain that says something else names it by its own digest, so both are told anew.
	chain := func(name, old, new string) logCase {
		s := newTale(t, nil)
		if !strings.Contains(s.chainText, old) {
			t.Fatalf("%s: %q isn't in %s", name, old, s.chainText)
		}
		s.says(strings.Replace(s.chainText, old, new, 1))
		return found(c, ruleChains, name, s.whole())
	}
	narrowed := chain("narrowed, which is for people, in other words", `"narrowed":["`, `"narrowed":["as it were: `)
	narrowed.status, narrowed.finding = 0, ""
	keys := func(name string, change func(*audit.Keys)) logCase {
		v := found(c, ruleChains, name, newTale(t, nil).whole())
		v.keys = change
		return v
	}
	out := []logCase{
		narrowed,
		chain("a chain with another purpose", `"purpose":"q3 refunds"`, `"purpose":"q4 refunds"`),
		chain("a chain with a role more", `"roles":["analyst"]`, `"roles":["analyst","admin"]`),
		chain("a chain with another user", `"sub":"00u1a2b3c4d5"`, `"sub":"00u1a2b3c4d6"`),
		chain("a chain with a better grade", `"grade":"attested","evidence"`, `"grade":"asserted","evidence"`),
		chain("a chain that ends later", `"expires":"2026-11-20T12:06:00Z"`, `"expires":"2026-11-20T13:06:00Z"`),
		chain("a chain with a wider capability", `"actions":["select"]`, `"actions":["select","ddl"]`),
		chain("a chain with another token", `"token":{"iss":"https://broker.corp.example"`, `"token":{"iss":"https://broker.evil.example"`),
		verification("verified too late", `"verified_at":"2026-11-20T12:02:00Z"`, `"verified_at":"2026-11-20T12:07:00Z"`),
		verification("verified before the token", `"verified_at":"2026-11-20T12:02:00Z"`, `"verified_at":"2026-11-20T11:50:00Z"`),
		verification("another mesh", `"mesh":"https://broker.corp.example"`, `"mesh":"https://broker.evil.example"`),
		verification("another target", `/target/orders"`, `/target/billing"`),
		verification("too few actors allowed", `"max_actors":5`, `"max_actors":1`),
		verification("more actors than there may be", `"max_actors":5`, `"max_actors":9`),
		verification("root evidence of an unknown kind in the verification", `"root_evidence":"verified"`, `"root_evidence":"certain"`),
		verification("an unknown member of the verification", `"max_actors"`, `"note":1,"max_actors"`),
		verification("a pattern that is none", `"max_actors"`, `"delegations":[{"delegator":"/agent/*","delegate":"/agent/*/*"}],"max_actors"`),
		keys("a provider that isn't listed", func(k *audit.Keys) { k.IdentityProviders = nil }),
		keys("another client of the provider", func(k *audit.Keys) { k.IdentityProviders[0].Audiences = []string{"another"} }),
		keys("other keys of the provider", func(k *audit.Keys) { k.IdentityProviders[0].Keys = []byte(`{"keys":[]}`) }),
		keys("no certifying key", func(k *audit.Keys) { k.CertifyingKeys = nil }),
		keys("an authority that isn't listed", func(k *audit.Keys) { k.Authorities = nil }),
		keys("a list for another mesh", func(k *audit.Keys) { k.Mesh = "https://broker.evil.example" }),
	}
	for _, kind := range []string{"credential", "certificate", "key_statement", "identity_keys", "verification"} {
		out = append(out, told("evidence left out: "+kind, func(s *tale) { s.skip = func(k string) bool { return k == kind } }))
	}
	moved := newTale(t, func(s *tale) { s.rewrite = map[int]func(string) string{} })
	kept := moved.evidence
	moved.evidence = nil
	moved.second0(kept)
	late := newTale(t, func(s *tale) {
		s.rewrite = map[int]func(string) string{9: func(r string) string {
			return strings.Replace(r, `"time":"2026-11-20T12:02:00.009Z"`, `"time":"2026-11-20T12:06:30.001Z"`, 1)
		}}
	}).whole()
	other := newTale(t, func(s *tale) {
		s.rewrite = map[int]func(string) string{2: func(r string) string { return strings.Replace(r, `"data":"`, `"data":"AAAA`, 1) }}
	}).whole()
	unkept := newTale(t, nil).whole()
	delete(unkept.segments, zerothSegment)
	unkeptCase := found(c, ruleChains, "pruned, and the evidence with it", unkept)
	unkeptCase.pruned = true
	return append(out, unkeptCase, found(audit.ProblemRecord, ruleRecords, "evidence under another digest", other), found(c, ruleChains, "evidence behind the chain that names it", moved),
		found(c, ruleChains, "allowed after the chain had ended", late),
		presented(t, "a subject that wasn't kept", false), presented(t, "a subject that was kept", true))
}

// second0 tells the whole tale with its evidence at the end of the first segment.
func (s *tale) second0(kept []string) {
	open := s.first()
	var records []string
	for _, e := range kept {
		records = append(records, s.record("evidence", "", e))
	}
	s.frame(records...)
	s.segment()
	s.frame(s.record("log_segment", "", fmt.Sprintf(`{"segment":1,"total":1,"open":[{"id":%q,"seq":%d}]}`, bookID(open), open)),
		s.stated(), s.after(open, "completed", `{"status":"ok"}`))
}

// presented is a broker's chain, before it countersigned, beside the proxy's.
func presented(t testing.TB, name string, keep bool) logCase {
	subject := []byte("a~b~c")
	s := newTale(t, nil)
	if keep {
		s.evidence = append(s.evidence, fmt.Sprintf(`{"kind":"subject","digest":%q,"data":"YX5ifmM"}`, audit.DigestOf(subject)))
	}
	open := s.first()
	bare := fmt.Sprintf(`{"txn":"t","user":{"format":"iss_sub","iss":"https://idp.corp.example","sub":"x"},"root_evidence":"broker",`+
		`"hops":[{"kind":"user","id":"https://idp.corp.example#x","grade":"asserted"}],"expires":"2026-11-20T12:06:00Z","presented":%q}`, audit.DigestOf(subject))
	s.frame(s.record("chain", "", bare), s.record("exchange", fmt.Sprintf(`"chain":%q`, audit.DigestOf([]byte(bare))),
		`{"result":"accepted","presenter":"spiffe://corp.example/agent/planner/ac36c2841a5c597261461d73126e7726","exp":"2026-11-20T12:06:00Z"}`))
	s.frame(s.after(open, "outcome_unknown", `{"forwarded":false,"reason":"crash"}`))
	if keep {
		return good(ruleChains, name, s)
	}
	return found(audit.ProblemCredential, ruleChains, name, s)
}
