package kube

import (
	"bufio"
	"bytes"
	"net/http"

	"github.com/deputymesh/deputy/actor"
)

// Parse reads a request as the engine does.
func Parse(method, uri string) (verb, version string, o actor.KubeObject, canonical string, err error) {
	r, err := parse(method, uri)
	return r.verb, r.version, r.object, r.uri(), err
}

// Verbs are what a request without content is decided as.
func Verbs(method, uri string) ([]string, actor.KubeObject, error) {
	r, err := parse(method, uri)
	if err != nil || r.verb == "" {
		return nil, r.object, err
	}
	o := r.object
	verbs, err := verbsOf(r, &o, content{})
	return verbs, o, err
}

// ReadMetadata reads a body as the engine does.
func ReadMetadata(text []byte) (name, namespace string, err error) {
	m, err := readMetadata(text)
	return m.name, m.namespace, err
}

// AcceptMasked rewrites what is accepted.
func AcceptMasked(h http.Header, tables bool) { acceptMasked(h, tables) }

// ReadProtobuf reads a body in protobuf as the engine does.
func ReadProtobuf(text []byte, options bool) (string, error) {
	m, err := readProtobuf(text, options)
	return m.name + " " + m.generateName + " " + m.namespace + " " + m.uid, err
}

// MaskSecrets puts the masks on an answer about Secrets.
func MaskSecrets(text []byte) ([]byte, error) {
	var out bytes.Buffer
	to := bufio.NewWriter(&out)
	m := newMasker(true, nil, nil)
	m.tables = true
	if err := m.copy(to, bytes.NewReader(text)); err != nil {
		return nil, err
	}
	err := to.Flush()
	return out.Bytes(), err
}

// Frames puts them on the events of a watch, up to the first that can't be read.
func Frames(text []byte) []byte {
	m := newMasker(true, nil, nil)
	m.tables = true
	var out []byte
	for r := newReader(bytes.NewReader(text)); ; {
		line, err := m.frame(r)
		if err != nil {
			return out
		}
		out = append(out, line...)
	}
}

// Places are those of large requests.
func Places() (take func(actor.SubjectID) bool, leave func(actor.SubjectID)) {
	p := &places{by: map[actor.SubjectID]int{}}
	return p.take, p.leave
}
