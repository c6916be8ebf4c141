package kube

import (
	"bytes"
	"errors"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// typeProtobuf is how typed clients send objects of the API server's own kinds.
const typeProtobuf = "application/vnd.kubernetes.protobuf"

// magic begins such content (k8s.io/apimachinery/pkg/runtime/serializer/protobuf); a runtime.Unknown follows, which holds the object.
var magic = []byte("k8s\x00")

// Fields of the messages on the way to what an object says of itself. Every kind that has metadata has it as its first field (k8s.io/api, generated.proto).
const (
	unknownType, unknownRaw    = 1, 2 // runtime.Unknown; 3 and 4 are an encoding and a type of the raw object, which aren't there
	typeKind                   = 2    // runtime.TypeMeta
	objectMetadata             = 1
	metaName, metaGenerateName = 1, 2
	metaNamespace, metaUID     = 3, 5
)

var errProtobuf = errors.New("it isn't protobuf of an object, or can be read in two ways")

// fields reads the fields of one message that are texts, bytes or messages. One that stands there twice would be merged or replaced by readers, so it is refused
// where it is one of those that are asked for.
func fields(message []byte, asked ...protowire.Number) (map[protowire.Number][]byte, error) {
	out := map[protowire.Number][]byte{}
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil, errProtobuf
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 || kind == protowire.StartGroupType || kind == protowire.EndGroupType {
			return nil, errProtobuf
		}
		for _, a := range asked {
			if a != number {
				continue
			}
			value, m := protowire.ConsumeBytes(message)
			if _, twice := out[number]; twice || kind != protowire.BytesType || m < 0 {
				return nil, errProtobuf
			}
			out[number] = value
		}
		message = message[n:]
	}
	return out, nil
}

// readProtobuf reads what an object in protobuf says about which one it is. Options of a delete are no object.
func readProtobuf(content []byte, options bool) (metadata, error) {
	var m metadata
	body, ok := bytes.CutPrefix(content, magic)
	if !ok {
		return m, errProtobuf
	}
	unknown, err := fields(body, unknownType, unknownRaw, 3, 4)
	if err != nil {
		return m, err
	}
	kind, err := fields(unknown[unknownType], 1, typeKind)
	if err != nil || len(unknown[3])+len(unknown[4]) > 0 || options != (string(kind[typeKind]) == "DeleteOptions") {
		return m, errProtobuf
	}
	if options {
		return m, nil
	}
	object, err := fields(unknown[unknownRaw], objectMetadata)
	if err != nil {
		return m, err
	}
	meta, err := fields(object[objectMetadata], metaName, metaGenerateName, metaNamespace, metaUID)
	if err != nil {
		return m, err
	}
	for number, to := range map[protowire.Number]*string{metaName: &m.name, metaGenerateName: &m.generateName, metaNamespace: &m.namespace, metaUID: &m.uid} {
		if *to = string(meta[number]); !utf8.ValidString(*to) {
			return metadata{}, errProtobuf
		}
	}
	return m, nil
}
