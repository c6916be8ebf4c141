package strictjson

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	if err := assign(&n, target.Elem()); err != nil {
		return err
	}
	return nil
}

// placed is an error and where in the value it is. The place is put together on the way out.
type placed struct {
	at    string
	err   error
	whole bool // err is about what stands at that place, and another's
}

func (p *placed) Error() string {
	switch {
	case p.at == "":
		return p.err.Error()
	case p.whole:
		return p.at + ": " + p.err.Error()
	default:
		return p.err.Error() + " in " + p.at
	}
}

func (p *placed) Unwrap() error { return p.err }

func fault(format string, args ...any) *placed { return &placed{err: fmt.Errorf(format, args...)} }

func mismatch(n *node, want string) *placed {
	return fault("%w: %s where a %s is needed", ErrType, n.kind, want)
}

// member and element say of which one err speaks.
func (p *placed) member(name string) *placed {
	switch {
	case p.at == "" || p.at[0] == '[':
		p.at = name + p.at
	default:
		p.at = name + "." + p.at
	}
	return p
}

func (p *placed) element(i int) *placed {
	index := "[" + strconv.Itoa(i) + "]"
	if p.at != "" && p.at[0] != '[' {
		index += "."
	}
	p.at = index + p.at
	return p
}

func assign(n *node, v reflect.Value) *placed {
	if v.Type() == rawType {
		if n.kind == kindNull {
			return mismatch(n, "value")
		}
		v.SetBytes(append([]byte(nil), n.raw...))
		return nil
	}
	if v.Type() == timeType {
		return assignTime(n, v)
	}
	if v.CanAddr() {
		switch p := v.Addr(); {
		case p.Type().Implements(unmarsh):
			if n.kind == kindNull { // most take it for "leave it as it is"
				return mismatch(n, "value")
			}
			if err := p.Interface().(json.Unmarshaler).UnmarshalJSON(n.raw); err != nil {
				return &placed{err: err, whole: true}
			}
			return nil
		case p.Type().Implements(textType):
			if n.kind != kindString {
				return mismatch(n, "string")
			}
			if err := p.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.text)); err != nil {
				return &placed{err: err, whole: true}
			}
			return nil
		}
	}
	switch v.Kind() {
	case reflect.String:
		if n.kind != kindString {
			return mismatch(n, "string")
		}
		v.SetString(strings.Clone(n.text))
	case reflect.Bool:
		if n.kind != kindBool {
			return mismatch(n, "boolean")
		}
		v.SetBool(n.truth)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if n.kind != kindNumber {
			return mismatch(n, "integer")
		}
		i, err := strconv.ParseInt(n.text, 10, v.Type().Bits())
		if err != nil || n.text == "-0" {
			return fault("%w: %s", ErrRange, n.text)
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if n.kind != kindNumber {
			return mismatch(n, "integer")
		}
		i, err := strconv.ParseUint(n.text, 10, v.Type().Bits())
		if err != nil {
			return fault("%w: %s", ErrRange, n.text)
		}
		v.SetUint(i)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return assign(n, v.Elem())
	case reflect.Slice:
		if n.kind != kindArray {
			return mismatch(n, "array")
		}
		out := reflect.MakeSlice(v.Type(), len(n.elems), len(n.elems))
		for i := range n.elems {
			if err := assign(&n.elems[i], out.Index(i)); err != nil {
				return err.element(i)
			}
		}
		v.Set(out)
	case reflect.Struct:
		if n.kind != kindObject {
			return mismatch(n, "object")
		}
		return assignStruct(n, v)
	default:
		return fault("strictjson: cannot decode into %s", v.Type())
	}
	return nil
}

// assignTime reads a time in the one form that names an instant only once: time.Time itself takes every offset, null, and
// cuts a fraction that is too long.
func assignTime(n *node, v reflect.Value) *placed {
	if n.kind != kindString {
		return mismatch(n, "string")
	}
	var t time.Time
	if err := t.UnmarshalText([]byte(n.text)); err != nil || !strings.HasSuffix(n.text, "Z") || len(n.text) > len("2006-01-02T15:04:05.999999999Z") {
		return fault("%w: %q is no time in UTC", ErrType, n.text)
	}
	v.Set(reflect.ValueOf(t))
	return nil
}

func assignStruct(n *node, v reflect.Value) *placed {
	fields := fieldsOf(v.Type())
	taken := 0
	for _, f := range fields {
		i := slices.IndexFunc(n.members, func(m member) bool { return m.name == f.name })
		if i >= 0 {
			taken++
			if err := assign(&n.members[i].value, v.Field(f.index)); err != nil {
				return err.member(f.name)
			}
			continue
		}
		if f.optional {
			continue
		}
		for _, m := range n.members {
			if fold(m.name) == fold(f.name) {
				return fault("%w: %q instead of %q", ErrCase, m.name, f.name)
			}
		}
		return fault("%w: %q", ErrMissing, f.name)
	}
	if taken == len(n.members) { // no name is there twice
		return nil
	}
	for _, m := range n.members {
		if slices.ContainsFunc(fields, func(f field) bool { return f.name == m.name }) {
			continue
		}
		for _, f := range fields {
			if fold(f.name) == fold(m.name) {
				return fault("%w: %q instead of %q", ErrCase, m.name, f.name)
			}
		}
		return fault("%w: %q", ErrUnknown, m.name)
	}
	return nil
}

// field is one field of a struct that takes a member.
type field struct {
	name     string
	index    int
	optional bool
}

var structs sync.Map // reflect.Type -> []field

func fieldsOf(t reflect.Type) []field {
	if known, ok := structs.Load(t); ok {
		return known.([]field)
	}
	var fields []field
	for k := range t.NumField() {
		if name, optional := tag(t.Field(k)); name != "" {
			fields = append(fields, field{name, k, optional})
		}
	}
	structs.Store(t, fields)
	return fields
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
		return Object{}, mismatch(&n, "object")
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
			return "", mismatch(&m.value, "string").member(name)
		}
		return strings.Clone(m.value.text), nil
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
