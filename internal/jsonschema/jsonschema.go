// Package jsonschema makes a JSON schema (draft 2020-12) of a Go type as
// encoding/json writes it, and checks a document against such a schema.
//
// It knows what the types of api/v1 need and panics on anything else: it runs
// in tests and generators only.
package jsonschema

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Schema is a JSON schema or a part of one.
type Schema map[string]any

// Generator collects the definitions that a schema refers to.
type Generator struct {
	// Docs gives descriptions: "Type" and "Type.Field" in Go's names.
	Docs map[string]string
	// Custom gives the schema of types that encode themselves.
	Custom map[reflect.Type]Schema
	// Enums gives the values of named string types.
	Enums map[reflect.Type][]string

	defs map[string]any
}

// Generate returns the schema of v's type. Objects take no unknown fields away
// from a reader: additional properties are allowed, since fields are added.
func (g *Generator) Generate(v any) Schema {
	t := reflect.TypeOf(v)
	g.defs = map[string]any{}
	s := g.object(t)
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = t.Name()
	if len(g.defs) > 0 {
		s["$defs"] = g.defs
	}
	return s
}

func (g *Generator) object(t reflect.Type) Schema {
	props := map[string]any{}
	required := []string{}
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			panic(fmt.Sprintf("jsonschema: %s.%s has no JSON name", t, f.Name))
		}
		p := g.value(f.Type)
		if options == "omitempty" {
			if f.Type.Kind() == reflect.Pointer {
				p = g.value(f.Type.Elem())
			}
		} else {
			required = append(required, name)
		}
		if doc := g.Docs[t.Name()+"."+f.Name]; doc != "" {
			p["description"] = doc
		}
		props[name] = p
	}
	s := Schema{"type": "object", "properties": props}
	if len(required) > 0 {
		slices.Sort(required)
		s["required"] = required
	}
	if doc := g.Docs[t.Name()]; doc != "" {
		s["description"] = doc
	}
	return s
}

func (g *Generator) value(t reflect.Type) Schema {
	if s, ok := g.Custom[t]; ok {
		return clone(s)
	}
	if t == reflect.TypeFor[time.Time]() {
		return Schema{"type": "string", "format": "date-time"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return Schema{"anyOf": []any{g.value(t.Elem()), Schema{"type": "null"}}}
	case reflect.Struct:
		if _, ok := g.defs[t.Name()]; !ok {
			g.defs[t.Name()] = nil // stops the recursion of a type in itself
			g.defs[t.Name()] = g.object(t)
		}
		return Schema{"$ref": "#/$defs/" + t.Name()}
	case reflect.Slice:
		return Schema{"type": []any{"array", "null"}, "items": g.value(t.Elem())}
	case reflect.Map:
		return Schema{"type": "object", "additionalProperties": g.value(t.Elem())}
	case reflect.String:
		if e, ok := g.Enums[t]; ok {
			return Schema{"type": "string", "enum": e}
		}
		return Schema{"type": "string"}
	case reflect.Bool:
		return Schema{"type": "boolean"}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return Schema{"type": "integer"}
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		return Schema{"type": "integer", "minimum": 0}
	}
	panic(fmt.Sprintf("jsonschema: no schema for %s", t))
}

func clone(s Schema) Schema {
	c := Schema{}
	for k, v := range s {
		c[k] = v
	}
	return c
}

// Encode returns the schema as indented JSON with a final newline; keys are in
// bytewise order, so equal schemas are equal bytes.
func (s Schema) Encode() []byte {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic(err)
	}
	return append(b, '\n')
}
