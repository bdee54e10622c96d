package selinux

import (
	"cmp"
	"slices"
)

// index finds the last rule that matches a path without trying them all: a
// radix tree over the literal text that every match of a rule starts with.
type index struct {
	rules []rule
	root  node
}

type node struct {
	text     string  // what the edge to this node adds
	rules    []int32 // whose prefix ends here, the last first
	children []node  // by first byte of text, which differs
}

// newIndex takes the rules in the order of their files.
func newIndex(rules []rule) index {
	ix := index{rules: rules}
	order := make([]int32, len(rules))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(rules[a].prefix, rules[b].prefix), cmp.Compare(b, a))
	})
	ix.root = ix.build(order, 0)
	return ix
}

// build makes the node for rules that share the first depth bytes of their
// prefixes; order is sorted by prefix, so those that end here come first.
func (ix *index) build(order []int32, depth int) node {
	var n node
	i := 0
	for i < len(order) && len(ix.rules[order[i]].prefix) == depth {
		i++
	}
	n.rules = order[:i:i]
	for order = order[i:]; len(order) > 0; {
		first := ix.rules[order[0]].prefix
		end := 1
		for end < len(order) && ix.rules[order[end]].prefix[depth] == first[depth] {
			end++
		}
		last := ix.rules[order[end-1]].prefix
		common := depth + 1
		for common < len(first) && common < len(last) && first[common] == last[common] {
			common++
		}
		child := ix.build(order[:end], common)
		child.text = first[depth:common]
		n.children = append(n.children, child)
		order = order[end:]
	}
	return n
}

// last returns the last rule that matches path and file type, or nil.
func (ix *index) last(path string, fileType uint32) (*rule, error) {
	s := subject{path: path}
	lists := make([][]int32, 0, 32)
	for n, rest := &ix.root, path; ; {
		if len(n.rules) > 0 {
			lists = append(lists, n.rules)
		}
		if n = n.child(rest); n == nil {
			break
		}
		rest = rest[len(n.text):]
	}
	best := int32(-1)
	// The longest prefixes first: policies sort their most specific rules
	// last, so that few of the general ones are tried.
	for _, list := range slices.Backward(lists) {
		for _, i := range list {
			if i <= best {
				break
			}
			r := &ix.rules[i]
			if !r.forType(fileType) {
				continue
			}
			ok, err := r.matches(&s)
			if err != nil {
				return nil, err
			}
			if ok {
				best = i
				break
			}
		}
	}
	if best < 0 {
		return nil, nil
	}
	return &ix.rules[best], nil
}

func (n *node) child(rest string) *node {
	if rest == "" {
		return nil
	}
	i, ok := slices.BinarySearchFunc(n.children, rest[0], func(c node, b byte) int { return cmp.Compare(c.text[0], b) })
	if !ok {
		return nil
	}
	c := &n.children[i]
	if len(rest) < len(c.text) || rest[:len(c.text)] != c.text {
		return nil
	}
	return c
}
