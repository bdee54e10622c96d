package composefs

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/kedge-os/kedge/pkg/fault"
)

// This file holds all that is particular to repositories of format 1 as
// composefs-rs 0.7 to 0.9 writes them, which its authors do not call stable:
// meta.json, names, the splitstream format, and how a kernel command line names
// an image. (composefs-rs: repository_format.rs, splitstream_format.rs,
// composefs-oci/design.rs.)

// repoVersion is the format of meta.json that this file knows.
const repoVersion = 1

// featureV1 is the read-only-compatible feature of repositories whose images
// are of version 1.
const featureV1 = "v1_erofs"

// Meta is a repository's meta.json.
type Meta struct {
	Version   int       `json:"version"`
	Algorithm string    `json:"algorithm"` // fsverity-HASH-LOG2BLOCK
	Features  Features  `json:"features"`
	Formats   *Formats  `json:"erofs_formats,omitempty"`
	alg       Algorithm // of Algorithm
}

// Features are a repository's feature flags, as file systems have them.
type Features struct {
	Compatible         []string `json:"compatible"`
	ReadOnlyCompatible []string `json:"read-only-compatible"`
	Incompatible       []string `json:"incompatible"`
}

// Formats are the versions of the images that a repository wants of each tree.
type Formats struct {
	Default int   `json:"default"`
	Extra   []int `json:"extra,omitempty"`
}

// newMeta is what bootc writes for a new repository, but for the algorithm.
func newMeta(alg Algorithm) *Meta {
	return &Meta{
		Version: repoVersion, Algorithm: metaAlgorithm(alg), alg: alg,
		Features: Features{Compatible: []string{}, ReadOnlyCompatible: []string{featureV1}, Incompatible: []string{}},
		Formats:  &Formats{Default: 1},
	}
}

func metaAlgorithm(alg Algorithm) string { return fmt.Sprintf("fsverity-%s-12", alg) }

func (m *Meta) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

// FormatError says what of a repository kedge does not understand. Nothing in
// such a repository is touched.
type FormatError struct {
	Version      int      // of meta.json, where that is the reason
	Algorithm    string   // an unknown one
	Incompatible []string // unknown features
	ReadOnly     []string // unknown features that forbid writing only
	Images       []int    // versions of images that kedge does not write
}

func (e *FormatError) Error() string {
	switch {
	case e.Version != 0:
		return fmt.Sprintf("the repository has format %d, kedge knows %d", e.Version, repoVersion)
	case e.Algorithm != "":
		return fmt.Sprintf("the repository's objects are named by %q, which kedge does not know", e.Algorithm)
	case len(e.Incompatible) > 0:
		return fmt.Sprintf("the repository uses features that kedge does not know: %s", strings.Join(e.Incompatible, ", "))
	case len(e.ReadOnly) > 0:
		return fmt.Sprintf("the repository can be read but not written: it uses features that kedge does not know: %s", strings.Join(e.ReadOnly, ", "))
	}
	return fmt.Sprintf("the repository wants images of versions %v, of which kedge writes only 0 and 1", e.Images)
}

func formatFault(e *FormatError) error {
	return fault.New(fault.Conflict, "use the program that made the repository, or a newer kedge", "%w", e)
}

// decodeMeta reads meta.json and refuses what may not be opened at all.
func decodeMeta(data []byte) (*Meta, error) {
	var m Meta
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fault.New(fault.Corrupt, "put meta.json back as it was: it is the same in every repository that one version of a program makes", "read meta.json: %w", err)
	}
	if m.Version != repoVersion {
		return nil, formatFault(&FormatError{Version: m.Version})
	}
	if len(m.Features.Incompatible) > 0 {
		return nil, formatFault(&FormatError{Incompatible: m.Features.Incompatible})
	}
	for _, alg := range []Algorithm{SHA256, SHA512} {
		if m.Algorithm == metaAlgorithm(alg) {
			m.alg = alg
		}
	}
	if m.alg == 0 {
		return nil, formatFault(&FormatError{Algorithm: m.Algorithm})
	}
	if m.Formats == nil || m.Formats.Default == 2 && len(m.Formats.Extra) == 0 {
		m.Formats = &Formats{Default: 2} // before there was the field
		if slices.Contains(m.Features.ReadOnlyCompatible, featureV1) {
			m.Formats.Default = 1
		}
	}
	return &m, nil
}

// writable returns why nothing may be written, or nil.
func (m *Meta) writable() error {
	var unknown []string
	for _, f := range m.Features.ReadOnlyCompatible {
		if f != featureV1 {
			unknown = append(unknown, f)
		}
	}
	if len(unknown) > 0 {
		return formatFault(&FormatError{ReadOnly: unknown})
	}
	if m.Formats.Default > 1 || m.Formats.Default < 0 {
		return formatFault(&FormatError{Images: append([]int{m.Formats.Default}, m.Formats.Extra...)})
	}
	return nil
}

// imageOptions returns the form of the images that the repository's own tools
// would write. Extra versions that kedge cannot write are left to them.
func (m *Meta) imageOptions() ImageOptions {
	o := V1
	if m.Formats.Default == 0 {
		o = V0
	}
	o.Algorithm = m.alg
	return o
}

// Stream content types: eight letters as a little-endian number.
var (
	typeLayer    = contentType("ocilayer")
	typeConfig   = contentType("ociconfg")
	typeManifest = contentType("ocimanif")
)

func contentType(s string) uint64 { return binary.LittleEndian.Uint64([]byte(s)) }

// Names of streams.
func layerStream(diffID string) string    { return "oci-layer-" + diffID }
func configStream(digest string) string   { return "oci-config-" + digest }
func manifestStream(digest string) string { return "oci-manifest-" + digest }

// Names by which streams refer to others.
const (
	refConfig    = "config:"                 // in a manifest, before the config's digest
	refImages    = "composefs.image"         // in a config: the prefix of those below
	refRawImage  = "composefs.image.v1"      // the image of the tree as it is
	refBootImage = "composefs.image.boot.v1" // that of the tree for booting
)

// tagRef returns the ref of a tag.
func tagRef(tag string) string {
	return "oci/" + strings.NewReplacer("%", "%25", "/", "%2F").Replace(tag)
}

// tagOf is the inverse of tagRef; false for a ref that is no tag.
func tagOf(ref string) (string, bool) {
	s, ok := strings.CutPrefix(ref, "oci/")
	return strings.NewReplacer("%25", "%", "%2F", "/").Replace(s), ok
}

// BootTag is the tag by which bootc keeps the image of a deployment.
func BootTag(manifestDigest string) string { return "localhost/bootc-" + manifestDigest }

// Karg is what a kernel command line says of the image to boot.
type Karg struct {
	Digest        Digest
	AllowNoVerity bool // "?": boot even where the file system has no fs-verity
}

// kargName is the argument that bootc writes; its initramfs and kedge's take
// also the one with version and algorithm.
const (
	kargName     = "composefs"
	kargLongName = "composefs.digest"
)

// String returns the argument as bootc writes it.
func (k Karg) String() string {
	if k.AllowNoVerity {
		return kargName + "=?" + k.Digest.String()
	}
	return kargName + "=" + k.Digest.String()
}

// ParseKarg finds the image in the arguments of a kernel command line. With
// neither composefs= nor composefs.digest= among them it returns nil, nil;
// composefs.digest= goes first, and of several the first counts, as bootc's
// initramfs has it.
func ParseKarg(args []string) (*Karg, error) {
	var short, long string
	var haveShort, haveLong bool
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		switch {
		case name == kargName && !haveShort:
			short, haveShort = value, true
		case name == kargLongName && !haveLong:
			long, haveLong = value, true
		}
	}
	switch {
	case haveLong:
		k, err := parseLongKarg(long)
		if err != nil {
			return nil, fault.New(fault.Corrupt, "", "kernel argument %s=%s: %w", kargLongName, long, err)
		}
		return k, nil
	case haveShort:
		k, err := parseKargDigest(short)
		if err != nil {
			return nil, fault.New(fault.Corrupt, "", "kernel argument %s=%s: %w", kargName, short, err)
		}
		return k, nil
	}
	return nil, nil
}

// parseLongKarg reads [?]vVERSION-HASH-12:HEX.
func parseLongKarg(s string) (*Karg, error) {
	rest, optional := strings.CutPrefix(s, "?")
	form, hex, ok := strings.Cut(rest, ":")
	if !ok || !strings.HasPrefix(form, "v") {
		return nil, errors.New("want [?]vVERSION-HASH-12:DIGEST")
	}
	k, err := parseKargDigest(hex)
	if err != nil {
		return nil, err
	}
	version, alg, _ := strings.Cut(form[1:], "-")
	if _, err := strconv.ParseUint(version, 10, 8); err != nil || alg != k.Digest.Algorithm().String()+"-12" {
		return nil, fmt.Errorf("%q is not the form of a %s digest", form, k.Digest.Algorithm())
	}
	k.AllowNoVerity = optional
	return k, nil
}

func parseKargDigest(s string) (*Karg, error) {
	hex, optional := strings.CutPrefix(s, "?")
	d, err := ParseDigest(hex)
	if err != nil {
		return nil, err
	}
	if d.Algorithm() == 0 {
		return nil, fmt.Errorf("a digest of %d bytes", len(d))
	}
	return &Karg{Digest: d, AllowNoVerity: optional}, nil
}

// A splitstream is a file, such as a tar, of which the larger parts are objects
// of the repository. It begins with a header of 32 bytes (magic, version, flags,
// algorithm, log2 of the block size, range of the info section) and the info
// section of 80: the ranges of stream refs, object refs, stream and named refs
// as start and end, content type, size of the original. Stream refs and object
// refs are arrays of digests; stream and named refs are zstd. The stream is a
// sequence of signed 64-bit numbers: -n is followed by n bytes, n ≥ 0 stands for
// object ref n. Named refs are "INDEX:NAME\0" with indexes of stream refs.
const (
	streamMagic     = "SplitStream\x00" // with the version, 0
	streamHeaderLen = 32
	streamInfoLen   = 80
	streamBlock     = 12
	// maxInlineRun bounds what is held of the parts between objects.
	maxInlineRun = 16 << 20
)

// streamRef is a named reference to another stream, or to an image.
type streamRef struct {
	Name   string
	Object Digest
}

// streamWriter makes a splitstream. Its memory is that of the compressed
// stream, the object refs and maxInlineRun.
type streamWriter struct {
	alg     Algorithm
	kind    uint64
	size    uint64
	inline  []byte
	objects []byte
	index   map[Digest]uint64
	body    bytes.Buffer
	zstd    *zstd.Encoder
}

func newStreamWriter(alg Algorithm, kind uint64) *streamWriter {
	w := &streamWriter{alg: alg, kind: kind, index: make(map[Digest]uint64)}
	w.zstd = newZstd(&w.body)
	return w
}

func newZstd(w io.Writer) *zstd.Encoder {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		panic(err) // options are constants
	}
	return z
}

// Inline appends bytes of the original.
func (w *streamWriter) Inline(p []byte) error {
	w.size += uint64(len(p))
	w.inline = append(w.inline, p...)
	if len(w.inline) > maxInlineRun {
		return w.flush()
	}
	return nil
}

// Object appends an object of size bytes.
func (w *streamWriter) Object(d Digest, size uint64) error {
	if err := w.flush(); err != nil {
		return err
	}
	i, ok := w.index[d]
	if !ok {
		i = uint64(len(w.index))
		w.index[d] = i
		w.objects = append(w.objects, d...)
	}
	w.size += size
	return w.number(int64(i))
}

func (w *streamWriter) number(n int64) error {
	_, err := w.zstd.Write(binary.LittleEndian.AppendUint64(nil, uint64(n)))
	return err
}

func (w *streamWriter) flush() error {
	if len(w.inline) == 0 {
		return nil
	}
	if err := w.number(-int64(len(w.inline))); err != nil {
		return err
	}
	_, err := w.zstd.Write(w.inline)
	w.inline = w.inline[:0]
	return err
}

// Finish returns the file.
func (w *streamWriter) Finish(refs []streamRef) ([]byte, error) {
	if err := w.flush(); err != nil {
		return nil, err
	}
	if err := w.zstd.Close(); err != nil {
		return nil, err
	}
	w.inline, w.zstd = nil, nil
	refs = slices.Clone(refs)
	slices.SortFunc(refs, func(a, b streamRef) int { return strings.Compare(a.Name, b.Name) })
	var streams []byte
	var named bytes.Buffer
	z := newZstd(&named)
	index := make(map[Digest]int)
	for _, r := range refs {
		i, ok := index[r.Object]
		if !ok {
			i = len(index)
			index[r.Object] = i
			streams = append(streams, r.Object...)
		}
		if _, err := fmt.Fprintf(z, "%d:%s\x00", i, r.Name); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	b := append(make([]byte, 0, streamHeaderLen+streamInfoLen+len(streams)+len(w.objects)+named.Len()+w.body.Len()), streamMagic...)
	b = append(b, 0, 0, byte(w.alg), streamBlock)
	b = le.AppendUint64(le.AppendUint64(b, streamHeaderLen), streamHeaderLen+streamInfoLen)
	streamsAt := uint64(streamHeaderLen + streamInfoLen)
	objectsAt := streamsAt + uint64(len(streams))
	namedAt := objectsAt + uint64(len(w.objects))
	bodyAt := namedAt + uint64(named.Len())
	end := bodyAt + uint64(w.body.Len())
	for _, v := range []uint64{streamsAt, objectsAt, objectsAt, namedAt, bodyAt, end, namedAt, bodyAt, w.kind, w.size} {
		b = le.AppendUint64(b, v)
	}
	b = append(append(b, streams...), w.objects...)
	return append(append(b, named.Bytes()...), w.body.Bytes()...), nil
}

// splitstream is a decoded splitstream without its body.
type splitstream struct {
	Kind    uint64
	Size    uint64
	Objects []Digest
	Refs    []streamRef
	body    []byte
}

// maxNamedRefs bounds the named refs, decompressed: a config has one for each
// layer.
const maxNamedRefs = 4 << 20

// decodeStream reads a splitstream. Its errors are of kind Corrupt.
func decodeStream(data []byte, alg Algorithm) (*splitstream, error) {
	s, err := parseStream(data, alg)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "", "read a splitstream: %w", err)
	}
	return s, nil
}

func parseStream(data []byte, alg Algorithm) (*splitstream, error) {
	le := binary.LittleEndian
	if len(data) < streamHeaderLen {
		return nil, errors.New("it is shorter than its header")
	}
	h := data[:streamHeaderLen]
	if string(h[18:30]) == streamMagic {
		// bootc up to 1.15 had the fields in another order.
		h = slices.Concat(h[18:30], h[16:18], h[30:32], h[:16])
	}
	if string(h[:12]) != streamMagic {
		return nil, errors.New("it does not begin as one, or is of an unknown version")
	}
	if h[14] != byte(alg) || h[15] != streamBlock {
		return nil, fmt.Errorf("it names objects by algorithm %d with blocks of 2^%d, the repository by %v", h[14], h[15], alg)
	}
	section := func(b []byte) ([]byte, error) {
		start, end := le.Uint64(b), le.Uint64(b[8:])
		if start > end || end > uint64(len(data)) {
			return nil, fmt.Errorf("a section is at %d to %d of %d bytes", start, end, len(data))
		}
		return data[start:end], nil
	}
	info, err := section(h[16:])
	if err != nil {
		return nil, err
	}
	if len(info) < streamInfoLen {
		return nil, fmt.Errorf("its info section has %d bytes", len(info))
	}
	s := &splitstream{Kind: le.Uint64(info[64:]), Size: le.Uint64(info[72:])}
	var parts [4][]byte
	for i := range parts {
		if parts[i], err = section(info[16*i:]); err != nil {
			return nil, err
		}
	}
	streams, err := digestList(parts[0], alg)
	if err != nil {
		return nil, err
	}
	if s.Objects, err = digestList(parts[1], alg); err != nil {
		return nil, err
	}
	s.body = parts[2]
	return s, s.namedRefs(parts[3], streams)
}

func digestList(b []byte, alg Algorithm) ([]Digest, error) {
	n := alg.Size()
	if len(b)%n != 0 {
		return nil, fmt.Errorf("%d bytes of digests of %d", len(b), n)
	}
	out := make([]Digest, 0, len(b)/n)
	for ; len(b) > 0; b = b[n:] {
		out = append(out, Digest(b[:n]))
	}
	return out, nil
}

func (s *splitstream) namedRefs(packed []byte, streams []Digest) error {
	if len(packed) == 0 {
		return nil
	}
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	text, err := io.ReadAll(io.LimitReader(z, maxNamedRefs+1))
	if err != nil {
		return err
	}
	if len(text) > maxNamedRefs {
		return fmt.Errorf("its named refs have more than %d bytes", maxNamedRefs)
	}
	for len(text) > 0 {
		record, rest, ok := bytes.Cut(text, []byte{0})
		number, name, colon := strings.Cut(string(record), ":")
		i, err := strconv.ParseUint(number, 10, 32)
		if !ok || !colon || err != nil || i >= uint64(len(streams)) {
			return fmt.Errorf("the named ref %.80q is malformed", record)
		}
		s.Refs = append(s.Refs, streamRef{name, streams[i]})
		text = rest
	}
	return nil
}

// Original reads the original file, with open for its objects.
func (s *splitstream) Original(open func(Digest) (io.ReadCloser, error)) (io.ReadCloser, error) {
	z, err := zstd.NewReader(bytes.NewReader(s.body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return nil, err
	}
	return &originalReader{s: s, z: z, open: open}, nil
}

type originalReader struct {
	s      *splitstream
	z      *zstd.Decoder
	open   func(Digest) (io.ReadCloser, error)
	left   int64         // of an inline part
	object io.ReadCloser // the object being read, or nil
}

func (r *originalReader) Read(p []byte) (int, error) {
	for {
		switch {
		case r.object != nil:
			n, err := r.object.Read(p)
			if err == io.EOF {
				_ = r.object.Close()
				r.object, err = nil, nil
			}
			if n > 0 || err != nil {
				return n, err
			}
			continue
		case r.left > 0:
			n, err := r.z.Read(p[:min(int64(len(p)), r.left)])
			if r.left -= int64(n); err == io.EOF && r.left > 0 {
				err = io.ErrUnexpectedEOF
			}
			if n > 0 {
				return n, nil
			}
			if err != nil {
				return 0, err
			}
			continue
		}
		if err := r.next(); err != nil {
			return 0, err
		}
	}
}

func (r *originalReader) next() error {
	var b [8]byte
	if _, err := io.ReadFull(r.z, b[:]); err != nil {
		return err
	}
	n := int64(binary.LittleEndian.Uint64(b[:]))
	switch {
	case n == math.MinInt64:
		return fault.New(fault.Corrupt, "", "read a splitstream: a part of 2^63 bytes")
	case n < 0:
		r.left = -n
		return nil
	case n >= int64(len(r.s.Objects)):
		return fault.New(fault.Corrupt, "", "read a splitstream: object %d of %d", n, len(r.s.Objects))
	}
	object, err := r.open(r.s.Objects[n])
	r.object = object
	return err
}

func (r *originalReader) Close() error {
	r.z.Close()
	if r.object != nil {
		return r.object.Close()
	}
	return nil
}
