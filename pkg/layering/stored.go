package layering

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Record is what the labels of a derived image say of how it was made.
type Record struct {
	Base    string // digest of the base image's manifest
	Format  string // Format of the program that made it
	Request Request
	Lock    Lock
	// Secrets are the paths of keys that packages generated, and that are therefore
	// not in the image.
	Secrets []string
}

// ReadRecord reads the labels of an image's config; nil where it is no derived
// image. Labels that cannot be read are Corrupt.
func ReadRecord(labels map[string]string) (*Record, error) {
	if labels[LabelLock] == "" || labels[LabelBase] == "" {
		return nil, nil
	}
	r := &Record{Base: labels[LabelBase], Format: labels[LabelFormat]}
	err := errors.Join(json.Unmarshal([]byte(labels[LabelLock]), &r.Lock), json.Unmarshal([]byte(labels[LabelRequest]), &r.Request))
	if secrets := labels[LabelSecrets]; secrets != "" {
		err = errors.Join(err, json.Unmarshal([]byte(secrets), &r.Secrets))
	}
	if err != nil {
		return nil, fault.New(fault.Corrupt, "remove the packages and add them again", "read the labels of the derived image: %w", err)
	}
	return r, nil
}

// Stored is an image of a Layout with its record.
type Stored struct {
	Derived
	Record
	Manifest v1.Manifest
}

// Images lists the layout's images. A layout that is not there has none; an
// image that cannot be read is left out.
func (l Layout) Images() ([]Stored, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	var list []Stored
	for _, d := range index.Manifests {
		s := Stored{Derived: Derived{Name: d.Annotations[v1.AnnotationRefName], ManifestDigest: d.Digest.String()}}
		var c v1.Image
		if l.readJSON(d.Digest, &s.Manifest) != nil || l.readJSON(s.Manifest.Config.Digest, &c) != nil {
			continue
		}
		r, err := ReadRecord(c.Config.Labels)
		if err != nil || r == nil {
			continue
		}
		s.Record = *r
		list = append(list, s)
	}
	return list, nil
}

// Open opens a blob of the layout: a manifest, a config or the new layer of an
// image. What is not there is fs.ErrNotExist.
func (l Layout) Open(d digest.Digest) (io.ReadCloser, int64, error) {
	if err := d.Validate(); err != nil {
		return nil, 0, err
	}
	f, err := l.Root.Open(blobName(d))
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

// Read returns a manifest or config of the layout, as its digest says.
func (l Layout) Read(d digest.Digest) ([]byte, error) {
	r, _, err := l.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	const limit = 4 << 20 // as for the manifests and configs of registries
	b, err := io.ReadAll(io.LimitReader(r, limit))
	if err == nil && digest.FromBytes(b) != d {
		err = fault.New(fault.Corrupt, "remove the packages and add them again", "the blob %s of the local images is damaged", d)
	}
	return b, err
}

func (l Layout) readJSON(d digest.Digest, v any) error {
	b, err := l.Read(d)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Sweep removes what sessions that were killed left in a directory that was
// their Options.Work. A directory that is not there is fine.
func Sweep(work string) error {
	if _, err := os.Stat(work); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return sweep(work)
}

// PackagePath is where a cache has a package's file that was once a local one:
// what a later Request names in its Files.
func PackagePath(cache, engine string, sum digest.Digest) string {
	return cache + "/packages/" + sum.Encoded() + "." + packageSuffix[engine]
}
