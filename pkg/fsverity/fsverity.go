// Package fsverity computes fs-verity digests, enables verity on files and
// measures it: block size 4096, no salt, as composefs and libostree do.
//
// Nothing but Seal, Measure and CreateSealed touches files. CreateSealed's
// commit point is the ioctl that enables verity; whoever gives the file its
// final name does so afterwards.
package fsverity

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Algorithm is an fs-verity hash algorithm; the values are the kernel's
// (FS_VERITY_HASH_ALG_*).
type Algorithm uint8

// The algorithms that stores use.
const (
	SHA256 Algorithm = 1
	SHA512 Algorithm = 2
)

const (
	verityBlock    = 4096
	verityLog2     = 12
	descriptorSize = 256
)

// Size returns the length of a digest in bytes, or 0 for an unknown algorithm.
func (a Algorithm) Size() int {
	switch a {
	case SHA256:
		return sha256.Size
	case SHA512:
		return sha512.Size
	}
	return 0
}

// String returns the name as fsverity(1) and composefs-rs write it.
func (a Algorithm) String() string {
	switch a {
	case SHA256:
		return "sha256"
	case SHA512:
		return "sha512"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

func (a Algorithm) new() hash.Hash {
	if a == SHA512 {
		return sha512.New()
	}
	return sha256.New()
}

// appendSum appends the hash of b to dst.
func (a Algorithm) appendSum(dst, b []byte) []byte {
	if a == SHA512 {
		s := sha512.Sum512(b)
		return append(dst, s[:]...)
	}
	s := sha256.Sum256(b)
	return append(dst, s[:]...)
}

// wide is how many blocks appendSums takes at most.
const wide = 8

// appendSums appends the hash of each of the one to wide blocks in p to dst.
func (a Algorithm) appendSums(dst, p []byte) []byte {
	if a == SHA512 && haveWide && len(p) >= wideFrom*verityBlock {
		return appendSums512(dst, p)
	}
	for ; len(p) > 0; p = p[verityBlock:] {
		dst = a.appendSum(dst, p[:verityBlock])
	}
	return dst
}

// Digest is the raw bytes of an fs-verity digest: 32 for sha256, 64 for sha512,
// none where no digest is known.
type Digest string

// ParseDigest reads a digest in hexadecimal.
func ParseDigest(s string) (Digest, error) {
	b, err := hex.DecodeString(s)
	if err != nil || (len(b) != sha256.Size && len(b) != sha512.Size) {
		return "", fault.New(fault.Usage, "", "%q is no fs-verity digest: want 64 or 128 hexadecimal digits", s)
	}
	return Digest(b), nil
}

// String returns the digest in lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString([]byte(d)) }

// Algorithm returns the algorithm whose digests are as long as d, or 0.
func (d Digest) Algorithm() Algorithm {
	switch len(d) {
	case sha256.Size:
		return SHA256
	case sha512.Size:
		return SHA512
	}
	return 0
}

// Check returns an error unless d is empty or as long as a digest.
func (d Digest) Check() error {
	if d != "" && d.Algorithm() == 0 {
		return fmt.Errorf("fs-verity digest of %d bytes, want 32 or 64", len(d))
	}
	return nil
}

// Hasher computes the fs-verity digest of what is written to it: block size
// 4096, no salt. It holds one block for each level of the Merkle tree, never
// the file.
type Hasher struct {
	alg    Algorithm
	size   uint64
	levels [][]byte // levels[0] is the data block being filled, the others hold hashes
	sums   []byte   // scratch
}

// New returns a Hasher for an empty file.
func New(alg Algorithm) *Hasher {
	return &Hasher{alg: alg, levels: [][]byte{make([]byte, 0, verityBlock)}}
}

// Write adds bytes to the file. It never fails.
func (v *Hasher) Write(p []byte) (int, error) {
	n := len(p)
	v.size += uint64(n)
	if have := len(v.levels[0]); have > 0 {
		take := min(verityBlock-have, len(p))
		v.levels[0] = append(v.levels[0], p[:take]...)
		p = p[take:]
		if len(v.levels[0]) < verityBlock {
			return n, nil
		}
		v.push(1, v.levels[0])
		v.levels[0] = v.levels[0][:0]
	}
	for len(p) >= verityBlock {
		blocks := p[:min(len(p)/verityBlock, wide)*verityBlock]
		p = p[len(blocks):]
		v.sums = v.alg.appendSums(v.sums[:0], blocks)
		for s := v.sums; len(s) > 0; s = s[v.alg.Size():] {
			v.pushSum(1, s[:v.alg.Size()])
		}
	}
	v.levels[0] = append(v.levels[0], p...)
	return n, nil
}

// push adds the hash of a full block to level i.
func (v *Hasher) push(i int, block []byte) {
	v.sums = v.alg.appendSum(v.sums[:0], block)
	v.pushSum(i, v.sums)
}

// pushSum adds a hash to level i, and to the levels above it where that fills a
// block.
func (v *Hasher) pushSum(i int, sum []byte) {
	v.grow(i)
	v.levels[i] = append(v.levels[i], sum...)
	for len(v.levels[i]) == verityBlock {
		v.grow(i + 1)
		v.levels[i+1] = v.alg.appendSum(v.levels[i+1], v.levels[i])
		v.levels[i] = v.levels[i][:0]
		i++
	}
}

// grow makes level i exist, with the buffer of an earlier file where there is
// one.
func (v *Hasher) grow(i int) {
	if i < len(v.levels) {
		return
	}
	if i < cap(v.levels) {
		if old := v.levels[:i+1]; old[i] != nil {
			old[i] = old[i][:0]
			v.levels = old
			return
		}
	}
	v.levels = append(v.levels, make([]byte, 0, verityBlock))
}

// pushHashes adds the hash of a full block of level-1 hashes, computed
// elsewhere, for the bytes that the block covers.
func (v *Hasher) pushHashes(covered uint64, hashOfBlock []byte) {
	v.size += covered
	v.grow(1)
	v.grow(2)
	v.levels[2] = append(v.levels[2], hashOfBlock...)
	if len(v.levels[2]) == verityBlock {
		block := v.levels[2]
		v.levels[2] = v.levels[2][:0]
		v.push(3, block)
	}
}

// Size returns the number of bytes written so far.
func (v *Hasher) Size() uint64 { return v.size }

// Sum returns the digest of what was written. Nothing may be written after it.
func (v *Hasher) Sum() Digest {
	var root []byte
	if v.size > 0 {
		root = v.root()
	}
	desc := make([]byte, descriptorSize)
	desc[0] = 1
	desc[1] = byte(v.alg)
	desc[2] = verityLog2
	binary.LittleEndian.PutUint64(desc[8:], v.size)
	copy(desc[16:], root)
	h := v.alg.new()
	h.Write(desc)
	return Digest(h.Sum(nil))
}

func (v *Hasher) root() []byte {
	pad := func(b []byte) []byte { return append(b, make([]byte, verityBlock-len(b))...) }
	for i := 0; ; i++ {
		b := v.levels[i]
		top := i == len(v.levels)-1
		switch {
		case i > 0 && top && len(b) == v.alg.Size():
			return b
		case len(b) > 0:
			v.push(i+1, pad(b))
		}
	}
}

// Reset makes v ready for another file.
func (v *Hasher) Reset() {
	v.size = 0
	v.levels = v.levels[:1]
	v.levels[0] = v.levels[0][:0]
}
