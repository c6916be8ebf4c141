package testkube

import (
	"bytes"
	"encoding/json"
	"os"
	"time"
)

// Event is what a test reads of an entry in the API server's audit log (audit.k8s.io/v1).
type Event struct {
	AuditID    string `json:"auditID"`
	Stage      string `json:"stage"` // ResponseStarted, ResponseComplete, Panic
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	UserAgent  string `json:"userAgent"`
	// User is who was authenticated, Impersonated as whom it acted.
	User         User  `json:"user"`
	Impersonated *User `json:"impersonatedUser"`
	ObjectRef    struct {
		Resource    string `json:"resource"`
		APIGroup    string `json:"apiGroup"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code    int    `json:"code"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
	} `json:"responseStatus"`
	RequestObject  json.RawMessage   `json:"requestObject"`
	ResponseObject json.RawMessage   `json:"responseObject"`
	Annotations    map[string]string `json:"annotations"`
}

// User is as Kubernetes knows somebody.
type User struct {
	Username string              `json:"username"`
	UID      string              `json:"uid"`
	Groups   []string            `json:"groups"`
	Extra    map[string][]string `json:"extra"`
}

// Audit is what the API server logged so far, oldest first.
func (c *Cluster) Audit() []Event {
	c.t.Helper()
	text, err := os.ReadFile(c.auditLog)
	if err != nil {
		c.t.Fatal(err)
	}
	var all []Event
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			c.t.Fatalf("testkube: the audit log: %v: %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

// AwaitAudit waits for an event that the test looks for.
func (c *Cluster) AwaitAudit(what string, is func(Event) bool) Event {
	c.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, e := range c.Audit() {
			if is(e) {
				return e
			}
		}
	}
	c.t.Fatalf("testkube: nothing in the API server's audit log: %s", what)
	return Event{}
}
