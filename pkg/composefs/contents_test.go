package composefs

import (
	"crypto/sha256"
	"fmt"
	"testing"
)

// TestContents asks for what several layers have, of which some are empty and
// some have the same.
func TestContents(t *testing.T) {
	c := newContents()
	for range 2 { // the second time nothing is new
		for l := range 9 {
			layer := &savedLayer{}
			for i := range l * 100 * (l % 3) {
				sum := sha256.Sum256(fmt.Appendf(nil, "object %d", l*i))
				layer.objects = append(layer.objects, savedObject{sum, testDigest(SHA256, byte(i)), int64(l * i)})
			}
			for i := range l * (l % 2) {
				layer.inline = append(layer.inline, fmt.Sprintf("inline %d", i))
			}
			c.add(layer)
		}
	}
	for l := range 9 {
		for i := range l * 100 * (l % 3) {
			if p, ok := c.find(sha256.Sum256(fmt.Appendf(nil, "object %d", l*i))); !ok || p.object == "" || p.size != int64(l*i) {
				t.Fatalf("object %d is at %+v, %v", l*i, p, ok)
			}
		}
	}
	for i := range 7 {
		want := fmt.Sprintf("inline %d", i)
		if p, ok := c.find(sha256.Sum256([]byte(want))); !ok || p.inline != want || p.size != int64(len(want)) || p.object != "" {
			t.Errorf("%q is at %+v, %v", want, p, ok)
		}
	}
	if p, ok := c.find(sha256.Sum256([]byte("inline 7"))); ok {
		t.Errorf("a content of no layer is at %+v", p)
	}
}
