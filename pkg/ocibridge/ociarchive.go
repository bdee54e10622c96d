package ocibridge

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"github.com/kedge-os/kedge/pkg/fault"
)

// archiveReference is an oci-archive whose image is read out of the tar, where
// go.podman.io/image unpacks the whole archive into a temporary directory first.
// What the policy is asked for stays the library's.
type archiveReference struct {
	types.ImageReference
	file, image string
}

// maxArchiveEntries bounds an archive's table of contents: a manifest has no
// room for more layers.
const maxArchiveEntries = 1 << 16

// NewImageSource reads the archive's table of contents.
func (r archiveReference) NewImageSource(ctx context.Context, sys *types.SystemContext) (_ types.ImageSource, err error) {
	f, err := os.Open(r.file)
	if err != nil {
		return nil, err
	}
	keep := false
	defer func() {
		if !keep {
			err = errors.Join(err, f.Close())
		}
	}()
	if compressed, err := isCompressed(f); err != nil {
		return nil, err
	} else if compressed {
		// There is no reading at an offset; nobody writes these by default.
		return r.ImageReference.NewImageSource(ctx, sys)
	}
	s := &archiveSource{ref: r, file: f, blobs: make(map[digest.Digest]*io.SectionReader)}
	if err := s.read(ctx); err != nil {
		return nil, err
	}
	keep = true
	return s, nil
}

func isCompressed(f *os.File) (bool, error) {
	var magic [6]byte
	n, err := f.ReadAt(magic[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	for _, prefix := range []string{"\x1f\x8b", "\x28\xb5\x2f\xfd", "BZh", "\xfd7zXZ\x00"} {
		if bytes.HasPrefix(magic[:n], []byte(prefix)) {
			return true, nil
		}
	}
	return false, nil
}

// archiveSource is an image in an oci-archive. Blobs are read where they are.
type archiveSource struct {
	ref   archiveReference
	file  *os.File
	blobs map[digest.Digest]*io.SectionReader
	index v1.Index
	top   v1.Descriptor // of the image
}

// read finds the blobs and the image.
func (s *archiveSource) read(ctx context.Context) error {
	var index *io.SectionReader
	r := tar.NewReader(s.file)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fault.New(fault.Corrupt, archiveHint, "%s is not a whole tar: %w", s.ref.file, err)
		}
		if n == maxArchiveEntries {
			return fault.New(fault.Corrupt, archiveHint, "%s has more than %d entries", s.ref.file, maxArchiveEntries)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		at, err := s.file.Seek(0, io.SeekCurrent) // the reader has read the header and no more
		if err != nil {
			return err
		}
		section := io.NewSectionReader(s.file, at, h.Size)
		path, why := cleanPath(h.Name)
		if why != "" {
			return corrupt(h.Name, "%s", why)
		}
		if path == v1.ImageIndexFile {
			index = section
		} else if d, ok := blobDigest(path); ok {
			s.blobs[d] = section
		}
	}
	if index == nil {
		return fault.New(fault.Corrupt, archiveHint, "%s has no %s", s.ref.file, v1.ImageIndexFile)
	}
	data, err := readSection(index)
	if err == nil {
		err = json.Unmarshal(data, &s.index)
	}
	if err != nil {
		return fault.New(fault.Corrupt, archiveHint, "reading %s of %s: %w", v1.ImageIndexFile, s.ref.file, err)
	}
	return s.choose()
}

const archiveHint = "make the archive again, for instance with `skopeo copy docker://IMAGE oci-archive:FILE`"

// blobDigest reads a digest from blobs/ALGORITHM/HEX.
func blobDigest(path string) (digest.Digest, bool) {
	rest, ok := strings.CutPrefix(path, v1.ImageBlobsDir+"/")
	algorithm, hex, ok2 := strings.Cut(rest, "/")
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)
	return d, ok && ok2 && d.Validate() == nil
}

// choose finds the image by its name, or the only one.
func (s *archiveSource) choose() error {
	var names []string
	for _, m := range s.index.Manifests {
		name := m.Annotations[v1.AnnotationRefName]
		if s.ref.image != "" && name == s.ref.image || s.ref.image == "" && len(s.index.Manifests) == 1 {
			s.top = m
			return nil
		}
		names = append(names, fmt.Sprintf("%.100q", name))
	}
	slices.Sort(names)
	have := strings.Join(names[:min(len(names), 20)], ", ")
	if s.ref.image == "" && len(names) > 1 {
		return fault.New(fault.Usage, "write oci-archive:FILE:NAME; the names are "+have, "%s has %d images", s.ref.file, len(names))
	}
	return fault.New(fault.NotFound, "the archive has "+have, "%s has no image %q", s.ref.file, s.ref.image)
}

func readSection(r *io.SectionReader) ([]byte, error) {
	if r.Size() > maxManifest {
		return nil, fmt.Errorf("%d bytes are above the limit of %d", r.Size(), maxManifest)
	}
	data := make([]byte, r.Size())
	_, err := r.ReadAt(data, 0)
	if err == io.EOF && len(data) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if len(data) == 0 {
		err = nil
	}
	return data, err
}

func (s *archiveSource) blob(d digest.Digest) (*io.SectionReader, error) {
	r, ok := s.blobs[d]
	if !ok {
		return nil, fault.New(fault.Corrupt, archiveHint, "%s lacks the blob %s", s.ref.file, d)
	}
	return r, nil
}

// Reference implements types.ImageSource.
func (s *archiveSource) Reference() types.ImageReference { return s.ref }

// Close implements types.ImageSource.
func (s *archiveSource) Close() error { return s.file.Close() }

// GetManifest implements types.ImageSource. What it returns has the digest that
// the archive's index, or the caller, says.
func (s *archiveSource) GetManifest(_ context.Context, instance *digest.Digest) ([]byte, string, error) {
	d, mediaType := s.top.Digest, s.top.MediaType
	if instance != nil {
		d, mediaType = *instance, ""
	}
	if err := d.Validate(); err != nil {
		return nil, "", fault.New(fault.Corrupt, archiveHint, "the archive has a malformed digest %.80q: %w", d, err)
	}
	r, err := s.blob(d)
	if err != nil {
		return nil, "", err
	}
	data, err := readSection(r)
	if err != nil {
		return nil, "", fault.New(fault.Corrupt, archiveHint, "reading the manifest %s: %w", d, err)
	}
	if got := d.Algorithm().FromBytes(data); got != d {
		return nil, "", fault.New(fault.Untrusted, archiveHint, "the manifest %s of the archive has the digest %s", d, got)
	}
	return data, mediaType, nil
}

// GetBlob implements types.ImageSource.
func (s *archiveSource) GetBlob(_ context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	r, err := s.blob(info.Digest)
	if err != nil {
		return nil, 0, err
	}
	// Layers are read side by side, each with its own offset.
	return io.NopCloser(io.NewSectionReader(r, 0, r.Size())), r.Size(), nil
}

// HasThreadSafeGetBlob implements types.ImageSource.
func (s *archiveSource) HasThreadSafeGetBlob() bool { return true }

// GetSignatures implements types.ImageSource: an oci-archive has none.
func (s *archiveSource) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) {
	return nil, nil
}

// LayerInfosForCopy implements types.ImageSource.
func (s *archiveSource) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}
