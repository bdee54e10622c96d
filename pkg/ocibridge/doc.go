// Package ocibridge brings OCI images in: it resolves a reference, has the
// signature policy decide, fetches and decodes the layers, and merges them into
// one fstree.Tree.
//
// The order is that of trust. Open reads the manifest and the config and asks
// policy.json; no byte of a layer is requested before it has agreed. Import
// then reads every layer that the store does not have as one stream:
//
//	network → blob sha256 → decompress → diffID sha256 → tar → Store
//
// each stage in its own goroutine, joined by a few blocks of fixed size, so
// that neither a layer nor a large file is ever in memory or on disk as a tar.
// What is in a layer counts for nothing until its blob digest and its diffID
// have been found right: only then LayerWriter.Commit is called, which is the
// commit point of a layer. A layer's index (EncodeIndex) is kept by the store
// under the diffID, and a layer whose index is there is never fetched again.
//
// The merged tree is what the image says and nothing else: rules about /etc,
// /var, /run, top-level paths and labels are the stores' (Prepare).
//
// The package never writes to a store by itself and never changes a sysroot.
//
// Errors carry a fault.Kind:
//
//	Usage        the reference is malformed
//	NotFound     the registry has no such repository, tag or digest; no such layout
//	Conflict     the image is not bootable, or is for another architecture
//	Unavailable  the registry cannot be reached, answers 429 or 5xx, or stalls
//	Untrusted    the policy refuses; a digest is wrong; the registry's
//	             certificate is not signed by a known CA
//	Corrupt      the image is what its digests say, and cannot be read
//	Denied       401 or 403
package ocibridge
