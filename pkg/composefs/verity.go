package composefs

import "github.com/kedge-os/kedge/pkg/fsverity"

// Digest is what names an image or an object.
type Digest = fsverity.Digest

// Algorithm is what a store's digests are made with.
type Algorithm = fsverity.Algorithm

// The algorithms that composefs stores use.
const (
	SHA256 = fsverity.SHA256
	SHA512 = fsverity.SHA512
)

// ParseDigest reads a digest in hexadecimal.
func ParseDigest(s string) (Digest, error) { return fsverity.ParseDigest(s) }
