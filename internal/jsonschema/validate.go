package jsonschema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Validate checks a JSON document against a schema made by Generate or one
// that uses no more of the language: type, properties, required, enum, const,
// items, additionalProperties, anyOf, oneOf, $ref to $defs. The error names
// the first place that does not fit.
func Validate(schema, document []byte) error {
	var s map[string]any
	if err := json.Unmarshal(schema, &s); err != nil {
		return fmt.Errorf("schema: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("document: %w", err)
	}
	return validator{root: s}.check(s, v, "$")
}

type validator struct{ root map[string]any }

func (c validator) check(s map[string]any, v any, at string) error {
	if ref, ok := s["$ref"].(string); ok {
		defs, _ := c.root["$defs"].(map[string]any)
		def, ok := defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: schema has no %s", at, ref)
		}
		if err := c.check(def, v, at); err != nil {
			return err
		}
	}
	for _, key := range []string{"anyOf", "oneOf"} {
		if alternatives, ok := s[key].([]any); ok && !c.any(alternatives, v, at) {
			return fmt.Errorf("%s: fits no alternative of %s", at, key)
		}
	}
	if want, ok := s["const"]; ok && want != v {
		return fmt.Errorf("%s: is %v, not %v", at, v, want)
	}
	if enum, ok := s["enum"].([]any); ok && !slices.Contains(enum, v) {
		return fmt.Errorf("%s: %v is none of %v", at, v, enum)
	}
	if err := checkType(s["type"], v, at); err != nil {
		return err
	}
	switch v := v.(type) {
	case map[string]any:
		return c.checkObject(s, v, at)
	case []any:
		items, _ := s["items"].(map[string]any)
		for i, e := range v {
			if err := c.check(items, e, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c validator) any(alternatives []any, v any, at string) bool {
	return slices.ContainsFunc(alternatives, func(a any) bool {
		m, ok := a.(map[string]any)
		return ok && c.check(m, v, at) == nil
	})
}

func (c validator) checkObject(s, v map[string]any, at string) error {
	required, _ := s["required"].([]any)
	for _, r := range required {
		if _, ok := v[r.(string)]; !ok {
			return fmt.Errorf("%s: has no %s", at, r)
		}
	}
	props, _ := s["properties"].(map[string]any)
	extra, _ := s["additionalProperties"].(map[string]any)
	for name, e := range v {
		p, ok := props[name].(map[string]any)
		if !ok {
			p = extra
		}
		if err := c.check(p, e, at+"."+name); err != nil {
			return err
		}
	}
	return nil
}

func checkType(want, v any, at string) error {
	var names []any
	switch w := want.(type) {
	case nil:
		return nil
	case string:
		names = []any{w}
	case []any:
		names = w
	}
	is := "null"
	switch v := v.(type) {
	case map[string]any:
		is = "object"
	case []any:
		is = "array"
	case string:
		is = "string"
	case bool:
		is = "boolean"
	case json.Number:
		is = "number"
		if _, err := v.Int64(); err == nil && slices.Contains(names, any("integer")) {
			is = "integer"
		}
	}
	if !slices.Contains(names, any(is)) {
		return fmt.Errorf("%s: is a %s, not %v", at, is, names)
	}
	return nil
}
