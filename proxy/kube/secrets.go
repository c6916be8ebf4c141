package kube

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/deputymesh/deputy/audit"
	"github.com/deputymesh/deputy/internal/mask"
	"github.com/deputymesh/deputy/policy"
	"github.com/deputymesh/deputy/proxy"
	"github.com/deputymesh/deputy/proxy/internal/hop"
)

// Placeholder stands for a masked value. In data it is in base64, as values are there.
const Placeholder = "masked by deputy"

var placeholder64 = base64.StdEncoding.EncodeToString([]byte(Placeholder))

// lastApplied is where kubectl apply keeps the whole object that was applied last.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// plainAnnotation bounds an annotation of a masked object that is shown as it is: tools keep whole objects in some.
const plainAnnotation = 256

// masker masks the objects of one answer. It isn't safe for concurrent use.
type masker struct {
	secrets bool       // the objects are Secrets
	tables  bool       // their columns show no value, as the API server's own for Secrets
	one     bool       // the answer is about one object and no Secret; it may have a member called items
	paths   *mask.JSON // nil without masks of a policy's
	// reveal says whether a policy shows this very Secret; nil for no. It is asked for each object of a list, a table and a watch.
	reveal func(namespace, name string) bool
	values int64
	hidden []string // the values of the object at hand, as they are and in base64
}

func newMasker(secrets bool, rules []policy.MaskRule, keyed *mask.Keyed) *masker {
	m := &masker{secrets: secrets}
	if len(rules) > 0 {
		m.paths = mask.NewJSON(rules, keyed)
	}
	return m
}

func (m *masker) counts() []audit.MaskedCount {
	var out []audit.MaskedCount
	if m.values > 0 {
		out = append(out, audit.MaskedCount{Rule: "redact", Column: "secrets", Values: m.values})
	}
	if m.paths != nil {
		out = append(out, m.paths.Counts()...)
	}
	return out
}

// object is one object with its masks on, as JSON.
func (m *masker) object(o map[string]any) ([]byte, error) {
	switch {
	case !m.isShown(o):
		return m.masked(o)
	case m.paths == nil:
		return encode(o)
	}
	// What a policy masks in any object it masks in a Secret that it shows, too.
	plain := &masker{paths: m.paths}
	text, err := plain.masked(o)
	m.values += plain.values
	return text, err
}

func (m *masker) isShown(o map[string]any) bool {
	kind, _ := o["kind"].(string)
	meta, _ := o["metadata"].(map[string]any)
	namespace, _ := meta["namespace"].(string)
	name, _ := meta["name"].(string)
	return m.secrets && m.reveal != nil && name != "" && (kind == "" || kind == "Secret" || kind == "PartialObjectMetadata") && m.reveal(namespace, name)
}

func (m *masker) masked(o map[string]any) ([]byte, error) {
	m.hidden = nil
	if kind, _ := o["kind"].(string); kind == "Status" {
		failure(o)
	}
	m.secret(o)
	if meta, ok := o["metadata"].(map[string]any); ok {
		if err := m.metadata(meta); err != nil {
			return nil, err
		}
	}
	text, err := encode(o)
	if err != nil || m.paths == nil {
		return text, err
	}
	return m.paths.Bytes(text)
}

// shown are the members of a Secret that say nothing of its values.
var shown = []string{"kind", "apiVersion", "metadata", "type", "immutable", "data", "stringData"}

// secret masks the values of a Secret, and drops what no Secret has. Of what isn't one, such as a Status, nothing has these members.
func (m *masker) secret(o map[string]any) {
	if !m.secrets {
		return
	}
	kind, _ := o["kind"].(string)
	for name, value := range o {
		switch {
		case name == "data" || name == "stringData":
			o[name] = m.hide(value, name == "data")
		case (kind == "" || kind == "Secret") && !contains(shown, name):
			delete(o, name)
		}
	}
}

// hide keeps the keys of a map and nothing of its values.
func (m *masker) hide(value any, isBase64 bool) any {
	stand := Placeholder
	if isBase64 {
		stand = placeholder64
	}
	values, ok := value.(map[string]any)
	if !ok {
		if value == nil {
			return nil
		}
		m.values++
		return nil
	}
	for key, value := range values {
		if text, ok := value.(string); ok {
			m.remember(text, isBase64)
		}
		values[key] = stand
		m.values++
	}
	return values
}

// plainReasons are those of failures whose text is about the request. Others quote the object: what can't be decoded, with what stands around it
// in older servers, what isn't valid, and what admission forbids.
var plainReasons = []string{
	"Unauthorized", "NotFound", "AlreadyExists", "Conflict", "Gone", "Expired", "TooManyRequests", "Timeout", "ServerTimeout", "MethodNotAllowed", "NotAcceptable",
	"UnsupportedMediaType", "RequestEntityTooLarge",
}

const withheldText = "the cluster's words are withheld: they could hold a masked value"

// denied are the API server's words before those of an admission policy or webhook, which may say anything of the object, for any reason.
var denied = []string{"denied the request", "denied request"}

// failure takes the text out of a Status that may quote an object: of all but a success.
func failure(o map[string]any) {
	if o["status"] == "Success" {
		return
	}
	reason, _ := o["reason"].(string)
	message, _ := o["message"].(string)
	// The words of who decided about the user, such as RBAC. Others forbid, too.
	_, why, _ := strings.Cut(message, " is forbidden: ")
	isPlain := contains(plainReasons, reason) || reason == "Forbidden" && strings.HasPrefix(why, `User "`)
	said := withheldText
	for _, d := range denied {
		if who, _, found := strings.Cut(message, d); found && said == withheldText {
			said = who + d + ": " + withheldText
		}
	}
	if isPlain && said == withheldText && !strings.Contains(strings.ToLower(message), "admission") {
		return
	}
	o["message"] = said
	if details, ok := o["details"].(map[string]any); ok {
		delete(details, "causes")
	}
}

// minHidden is how long a value is at least that is looked for elsewhere in its object.
const minHidden = 4

// remember lets a value be found where somebody has copied it to.
func (m *masker) remember(text string, isBase64 bool) {
	if isBase64 {
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return
		}
		m.hidden = append(m.hidden, text)
		text = string(raw)
	}
	m.hidden = append(m.hidden, text, base64.StdEncoding.EncodeToString([]byte(text)))
}

// tells says whether a text holds a value that is hidden.
func (m *masker) tells(text string) bool {
	for _, h := range m.hidden {
		if h = strings.TrimSpace(h); len(h) >= minHidden && strings.Contains(text, h) {
			return true
		}
	}
	return false
}

// metadata masks what tools keep of an object in its annotations, and drops managedFields, which name every member.
func (m *masker) metadata(meta map[string]any) error {
	delete(meta, "managedFields")
	annotations, ok := meta["annotations"].(map[string]any)
	if !ok {
		delete(meta, "annotations")
	}
	// What was applied last tells values, too, where the object at hand has none, as in a table.
	if text, ok := annotations[lastApplied].(string); ok {
		known := m.hidden
		m.hidden = nil
		masked, err := m.inside(text)
		if err != nil {
			return err
		}
		m.hidden = append(known, m.hidden...)
		annotations[lastApplied] = masked
	}
	labels, _ := meta["labels"].(map[string]any)
	for key, value := range labels {
		if text, ok := value.(string); !ok || m.tells(text) {
			labels[key] = "masked"
			m.values++
		}
	}
	for key, value := range annotations {
		text, ok := value.(string)
		if ok && (key == lastApplied || len(text) <= plainAnnotation && !strings.ContainsAny(text, "{[") && !m.tells(text)) {
			continue
		}
		annotations[key] = Placeholder
		m.values++
	}
	return nil
}

// inside masks an object that stands in a text. What can't be read is masked whole.
func (m *masker) inside(text string) (string, error) {
	o := readObject(text)
	if o == nil {
		m.values++
		return Placeholder, nil
	}
	if m.secrets {
		o["kind"] = "Secret" // whatever it says, nothing is shown that a Secret doesn't show
	}
	masked, err := m.masked(o)
	return string(masked), err
}

// readObject is nil for what can't be read in one way.
func readObject(text string) map[string]any {
	var o map[string]any
	if _, err := readMetadata([]byte(text)); err != nil || decode([]byte(text), &o) != nil {
		return nil
	}
	return o
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func decode(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return d.Decode(into)
}

// writesMasked refuses content that would put a mask in the place of what it hides, and patches that tell of hidden values or carry them where none is.
func writesMasked(c content) error {
	if len(c.text) == 0 {
		return nil
	}
	const back = "the content holds a value that a mask stands for: it would put the mask in the place of the real one. Leave out what you don't change, as a patch does"
	if c.kind == typeProtobuf {
		if bytes.Contains(c.text, []byte(Placeholder)) || bytes.Contains(c.text, []byte(placeholder64)) {
			return objection(back)
		}
		return nil
	}
	var v any
	if err := decode(c.text, &v); err != nil {
		return objection("the content can't be read")
	}
	if holdsMask(v) {
		return objection(back)
	}
	if c.kind != typeJSONPatch {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		return objection("a JSON patch is a list")
	}
	for _, one := range list {
		o, _ := one.(map[string]any)
		switch op, _ := o["op"].(string); op {
		case "add", "replace", "remove":
		default:
			return objection("a JSON patch of an object with masked values adds, replaces and removes; to test, copy or move would tell what they are")
		}
	}
	return nil
}

// holdsMask says whether some text in a value is, or has in it, what stands for a masked one.
func holdsMask(v any) bool {
	switch v := v.(type) {
	case string:
		return v == "****" || strings.Contains(v, Placeholder) || strings.Contains(v, placeholder64)
	case []any:
		for _, e := range v {
			if holdsMask(e) {
				return true
			}
		}
	case map[string]any:
		for _, e := range v {
			if holdsMask(e) {
				return true
			}
		}
	}
	return false
}

// asksAboutMasked refuses selectors by which somebody could guess what is masked. Of Secrets the core's own are selected by name, namespace and type
// alone; those of another group by any member that their definition names.
func asksAboutMasked(r request, masks []policy.MaskRule) error {
	if len(masks) == 0 && r.object.Group == "" {
		return nil
	}
	for _, term := range strings.Split(r.query.Get("fieldSelector"), ",") {
		if term != "" && !strings.HasPrefix(term, "metadata.name") && !strings.HasPrefix(term, "metadata.namespace") {
			return objection("members of these objects are masked, so they can be selected by metadata.name and metadata.namespace alone")
		}
	}
	if r.query.Get("labelSelector") == "" {
		return nil
	}
	for _, m := range masks {
		if steps := m.Steps(); len(steps) == 0 || steps[0].Deep || steps[0].Any || strings.EqualFold(steps[0].Name, "metadata") {
			return objection("the policy masks what may stand in labels, so these objects can't be selected by them")
		}
	}
	return nil
}

func objection(format string, args ...any) error {
	return &proxy.Objection{Class: hop.ClassUnsupported, Reason: fmt.Sprintf(format, args...)}
}

// errWithheld is an answer that no mask can be put on.
var errWithheld = errors.New("the answer is withheld: values in it are masked, and it isn't JSON that a mask can be put on")
