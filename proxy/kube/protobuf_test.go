package kube_test

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/deputymesh/deputy/proxy/kube"
)

func field(number protowire.Number, value string) string {
	return string(protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), value))
}

func wrapped(kind, object string) string {
	return "k8s\x00" + field(1, field(1, "v1")+field(2, kind)) + field(2, object) + field(3, "") + field(4, "")
}

func TestProtobufIsReadInOneWay(t *testing.T) {
	meta := field(1, "web") + field(2, "w-") + field(3, "shop") + field(5, "7") + field(6, "8")
	number := string(protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 5))
	for name, c := range map[string]struct {
		text    string
		options bool
		want    string
	}{
		"an object":           {wrapped("Pod", field(1, meta)+field(2, "spec")+field(2, "spec")+number), false, "web w- shop 7"},
		"no metadata":         {wrapped("SelfSubjectReview", field(2, "spec")), false, "   "},
		"fields unsorted":     {wrapped("Pod", field(2, "x")+field(1, field(3, "shop")+number+field(1, "web"))), false, "web  shop "},
		"options of a delete": {wrapped("DeleteOptions", string(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 0))), true, "   "},
	} {
		if got, err := kube.ReadProtobuf([]byte(c.text), c.options); err != nil || got != c.want {
			t.Errorf("%s: %q %v, want %q", name, got, err, c.want)
		}
	}
	for name, text := range map[string]string{
		"no magic":               wrapped("Pod", field(1, meta))[4:],
		"metadata twice":         wrapped("Pod", field(1, meta)+field(1, field(1, "other"))),
		"a name twice":           wrapped("Pod", field(1, meta+field(1, "other"))),
		"a namespace twice":      wrapped("Pod", field(1, meta+field(3, "other"))),
		"a uid twice":            wrapped("Pod", field(1, meta+field(5, ""))),
		"an object twice":        wrapped("Pod", field(1, meta)) + field(2, field(1, field(1, "other"))),
		"a kind twice":           wrapped("Pod", field(1, meta)) + field(1, field(2, "Secret")),
		"a type of its own":      wrapped("Pod", field(1, meta)) + field(4, "application/json"),
		"an encoding":            "k8s\x00" + field(1, field(2, "Pod")) + field(2, field(1, meta)) + field(3, "gzip"),
		"a name that's a number": wrapped("Pod", field(1, string(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 5)))),
		"a name that's no text":  wrapped("Pod", field(1, field(1, "\xff"))),
		"a group":                wrapped("Pod", string(protowire.AppendTag(nil, 5, protowire.StartGroupType))+string(protowire.AppendTag(nil, 5, protowire.EndGroupType))),
		"cut off":                wrapped("Pod", field(1, meta))[:20],
		"options as an object":   wrapped("DeleteOptions", field(1, meta)),
	} {
		if got, err := kube.ReadProtobuf([]byte(text), false); err == nil {
			t.Errorf("%s is read as %q", name, got)
		}
	}
	if got, err := kube.ReadProtobuf([]byte(wrapped("Pod", field(1, meta))), true); err == nil {
		t.Errorf("an object is read as options: %q", got)
	}
}

func FuzzReadProtobuf(f *testing.F) {
	f.Add([]byte(wrapped("Pod", field(1, field(1, "web")))), false)
	f.Add([]byte(wrapped("DeleteOptions", "")), true)
	f.Fuzz(func(_ *testing.T, text []byte, options bool) { _, _ = kube.ReadProtobuf(text, options) })
}
