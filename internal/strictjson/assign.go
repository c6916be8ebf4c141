package strictjson

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	rawType  = reflect.TypeFor[json.RawMessage]()
	unmarsh  = reflect.TypeFor[json.Unmarshaler]()
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
	timeType = reflect.TypeFor[time.Time]()
)

// Unmarshal decodes data into v, a pointer.
//
// Struct members are named by their json tag, exactly. A field tagged omitempty
// or omitzero may be absent, every other must be there. Fields may be strings,
// booleans, integers, slices, structs, pointers to these, json.RawMessage, and
// types that implement json.Unmarshaler (they get the exact bytes and call this
// package themselves, and never null) or encoding.TextUnmarshaler. A time.Time is
// RFC 3339 in UTC, written with a Z.
func Unmarshal(data []byte, v any) error {
	target := reflect.ValueOf(v)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return fmt.Errorf("strictjson: decoding into %T, which is not a pointer", v)
	}
	n, err := parse(data)
	if err != nil {
		return err
	}
	return assign(n, target.Elem(), "")
}

func assign(n node, v reflect.Value, at string) error {
	if v.Type() == rawType {
		if n.kind == kindNull {
			return mismatch(at, n, "value")
		}
		v.SetBytes(append([]byte(nil), n.raw...))
		return nil
	}
	if v.Type() == timeType {
		return assignTime(n, v, at)
	}
	if v.CanAddr() {
		switch p := v.Addr(); {
		case p.Type().Implements(unmarsh):
			if n.kind == kindNull { // most take it for "leave it as it is"
				return mismatch(at, n, "value")
			}
			if err := p.Interface().(json.Unmarshaler).UnmarshalJSON(n.raw); err != nil {
				return within(at, err)
			}
			return nil
		case p.Type().Implements(textType):
			if n.kind != kindString {
				return mismatch(at, n, "string")
			}
			if err := p.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.text)); err != nil {
				return within(at, err)
			}
			return nil
		}
	}
	switch v.Kind() {
	case reflect.String:
		if n.kind != kindString {
			return mismatch(at, n, "string")
		}
		v.SetString(n.text)
	case reflect.Bool:
		if n.kind != kindBool {
			return mismatch(at, n, "boolean")
		}
		v.SetBool(n.truth)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if n.kind != kindNumber {
			return mismatch(at, n, "integer")
		}
		i, err := strconv.ParseInt(n.text, 10, v.Type().Bits())
		if err != nil || n.text == "-0" {
			return fmt.Errorf("%w: %s%s", ErrRange, n.text, where(at))
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if n.kind != kindNumber {
			return mismatch(at, n, "integer")
		}
		i, err := strconv.ParseUint(n.text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%w: %s%s", ErrRange, n.text, where(at))
		}
		v.SetUint(i)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return assign(n, v.Elem(), at)
	case reflect.Slice:
		if n.kind != kindArray {
			return mismatch(at, n, "array")
		}
		out := reflect.MakeSlice(v.Type(), len(n.elems), len(n.elems))
		for i, e := range n.elems {
			if err := assign(e, out.Index(i), fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
		v.Set(out)
	case reflect.Struct:
		if n.kind != kindObject {
			return mismatch(at, n, "object")
		}
		return assignStruct(n, v, at)
	default:
		return fmt.Errorf("strictjson: cannot decode into %s", v.Type())
	}
	return nil
}

// assignTime reads a time in the one form that names an instant only once: time.Time itself takes every offset, null, and
// cuts a fraction that is too long.
func assignTime(n node, v reflect.Value, at string) error {
	if n.kind != kindString {
		return mismatch(at, n, "string")
	}
	var t time.Time
	if err := t.UnmarshalText([]byte(n.text)); err != nil || !strings.HasSuffix(n.text, "Z") || len(n.text) > len("2006-01-02T15:04:05.999999999Z") {
		return fmt.Errorf("%w: %q is no time in UTC%s", ErrType, n.text, where(at))
	}
	v.Set(reflect.ValueOf(t))
	return nil
}

func assignStruct(n node, v reflect.Value, at string) error {
	t := v.Type()
	taken := make([]bool, len(n.members))
	for k := range t.NumField() {
		name, optional := tag(t.Field(k))
		if name == "" {
			continue
		}
		found := false
		for i, m := range n.members {
			if m.name == name {
				taken[i], found = true, true
				if err := assign(m.value, v.Field(k), join(at, name)); err != nil {
					return err
				}
				break
			}
		}
		if found || optional {
			continue
		}
		for _, m := range n.members {
			if fold(m.name) == fold(name) {
				return fmt.Errorf("%w: %q instead of %q%s", ErrCase, m.name, name, where(at))
			}
		}
		return fmt.Errorf("%w: %q%s", ErrMissing, name, where(at))
	}
	for i, m := range n.members {
		if taken[i] {
			continue
		}
		for k := range t.NumField() {
			if name, _ := tag(t.Field(k)); name != "" && fold(name) == fold(m.name) {
				return fmt.Errorf("%w: %q instead of %q%s", ErrCase, m.name, name, where(at))
			}
		}
		return fmt.Errorf("%w: %q%s", ErrUnknown, m.name, where(at))
	}
	return nil
}

func tag(f reflect.StructField) (name string, optional bool) {
	if f.Anonymous || !f.IsExported() {
		return "", false
	}
	name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
	if name == "-" {
		return "", false
	}
	return name, strings.Contains(opts, "omitempty") || strings.Contains(opts, "omitzero")
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

func where(at string) string {
	if at == "" {
		return ""
	}
	return " in " + at
}

func within(at string, err error) error {
	if at == "" {
		return err
	}
	return fmt.Errorf("%s: %w", at, err)
}

func mismatch(at string, n node, want string) error {
	return fmt.Errorf("%w: %s where a %s is needed%s", ErrType, n.kind, want, where(at))
}

// StringMember is [Object.String] of data, for choosing the type to decode into.
func StringMember(data []byte, name string) (string, error) {
	o, err := ParseObject(data)
	if err != nil {
		return "", err
	}
	return o.String(name)
}

// HasMember says whether data is an object with a member of exactly this name.
func HasMember(data []byte, name string) bool {
	o, err := ParseObject(data)
	return err == nil && o.Has(name)
}

// Object is one strict JSON object of whatever members: a statement of others, such as an ID token, that is looked at before
// a library decodes it.
type Object struct{ members []member }

// ParseObject reads data once, for many looks.
func ParseObject(data []byte) (Object, error) {
	n, err := parse(data)
	if err != nil {
		return Object{}, err
	}
	if n.kind != kindObject {
		return Object{}, mismatch("", n, "object")
	}
	return Object{n.members}, nil
}

// Has says whether there is a member of exactly this name.
func (o Object) Has(name string) bool {
	return slices.ContainsFunc(o.members, func(m member) bool { return m.name == name })
}

// String is the value of one string member.
func (o Object) String(name string) (string, error) {
	for _, m := range o.members {
		if m.name != name {
			continue
		}
		if m.value.kind != kindString {
			return "", mismatch(name, m.value, "string")
		}
		return m.value.text, nil
	}
	if err := o.CheckMembers(name); err != nil {
		return "", err
	}
	return "", fmt.Errorf("%w: %q", ErrMissing, name)
}

// CheckMembers refuses a member that equals one of names only under case folding: encoding/json would take it for that one.
func (o Object) CheckMembers(names ...string) error {
	for _, m := range o.members {
		for _, name := range names {
			if m.name != name && strings.EqualFold(m.name, name) {
				return fmt.Errorf("%w: %q instead of %q", ErrCase, m.name, name)
			}
		}
	}
	return nil
}
