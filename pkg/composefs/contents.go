package composefs

import (
	"crypto/sha256"
	"hash/maphash"
	"sort"

	"github.com/kedge-os/kedge/pkg/fstree"
)

// contents says where the contents of layers are, by their handles. It refers to
// what the layers hold and has little of its own.
type contents struct {
	layers []*savedLayer
	first  []uint32 // number of each layer's first content: objects, then inline ones
	next   uint32
	index  index
	seed   maphash.Seed
}

func newContents() *contents { return &contents{seed: maphash.MakeSeed()} }

// add adds what a layer has and none before it.
func (c *contents) add(l *savedLayer) {
	c.layers, c.first = append(c.layers, l), append(c.first, c.next)
	for i := range l.objects {
		c.put(l.objects[i].content)
	}
	for _, s := range l.inline {
		c.put(sha256.Sum256([]byte(s)))
	}
}

func (c *contents) put(d fstree.Digest) {
	if _, ok := c.find(d); !ok {
		c.index.add(c.hash(d), c.next)
	}
	c.next++
}

func (c *contents) hash(d fstree.Digest) uint32 { return uint32(maphash.Bytes(c.seed, d[:])) }

// find returns where a content is.
func (c *contents) find(d fstree.Digest) (place, bool) {
	i, ok := c.index.find(c.hash(d), func(i uint32) bool {
		l, k := c.at(i)
		if k < len(l.objects) {
			return l.objects[k].content == d
		}
		return sha256.Sum256([]byte(l.inline[k-len(l.objects)])) == d
	})
	if !ok {
		return place{}, false
	}
	l, k := c.at(i)
	if k < len(l.objects) {
		return place{object: l.objects[k].object, size: l.objects[k].size}, true
	}
	s := l.inline[k-len(l.objects)]
	return place{inline: s, size: int64(len(s))}, true
}

// at returns the layer that brought a content, and its number there.
func (c *contents) at(i uint32) (*savedLayer, int) {
	k := sort.Search(len(c.first), func(k int) bool { return c.first[k] > i }) - 1
	return c.layers[k], int(i - c.first[k])
}
