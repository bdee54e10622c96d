package object

import (
	"encoding/binary"
	"fmt"

	"github.com/kedge-os/kedge/internal/gvariant"
)

// Commit is a commit object. Decoding and encoding one again gives the same
// bytes, whatever its metadata holds.
type Commit struct {
	Metadata Dict
	Parent   Checksum // zero: none
	Related  []Related
	Subject  string
	Body     string
	Time     uint64 // seconds since the epoch
	Tree     Checksum
	Meta     Checksum // the root's dirmeta
}

// Related is an entry of a commit's list of related objects, which libostree
// itself leaves empty.
type Related struct {
	Name     string
	Checksum []byte
}

const commitType = "(a{sv}aya(say)sstayay)"

var (
	commitShape  = gvariant.StructOf(commitType)
	relatedShape = gvariant.StructOf("(say)")
)

// Encode returns the commit object's bytes; Sum of them names the commit.
func (c *Commit) Encode() []byte {
	var parent []byte
	if !c.Parent.IsZero() {
		parent = c.Parent[:]
	}
	related := make([]gvariant.Value, len(c.Related))
	for i, r := range c.Related {
		related[i] = gvariant.Tuple(gvariant.String(r.Name), gvariant.Bytes(r.Checksum))
	}
	return gvariant.Tuple(
		c.Metadata.value(),
		gvariant.Bytes(parent),
		gvariant.Array("(say)", related),
		gvariant.String(c.Subject),
		gvariant.String(c.Body),
		be64(c.Time),
		gvariant.Bytes(c.Tree[:]),
		gvariant.Bytes(c.Meta[:]),
	).Data
}

// DecodeCommit decodes a commit object.
func DecodeCommit(data []byte) (*Commit, error) {
	c, err := decodeCommit(data)
	if err != nil {
		return nil, malformed("commit", "%w", err)
	}
	return c, nil
}

func decodeCommit(data []byte) (*Commit, error) {
	v, err := commitShape.Split(nil, data)
	if err != nil {
		return nil, err
	}
	c := &Commit{Time: binary.BigEndian.Uint64(v[5].Data)}
	if c.Metadata, err = decodeDict(v[0].Data); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if len(v[1].Data) > 0 {
		if c.Parent, err = checksumFrom(v[1].Data); err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
	}
	err = v[2].Each(func(e gvariant.Value) error {
		m, err := relatedShape.Split(nil, e.Data)
		if err != nil {
			return err
		}
		name, err := m[0].Str()
		c.Related = append(c.Related, Related{name, m[1].Data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("related: %w", err)
	}
	if c.Subject, err = v[3].Str(); err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	if c.Body, err = v[4].Str(); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	if c.Tree, err = checksumFrom(v[6].Data); err != nil {
		return nil, fmt.Errorf("root dirtree: %w", err)
	}
	if c.Meta, err = checksumFrom(v[7].Data); err != nil {
		return nil, fmt.Errorf("root dirmeta: %w", err)
	}
	return c, nil
}
