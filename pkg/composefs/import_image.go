package composefs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/atomicfile"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Container is an OCI image whose layers the import has.
type Container struct {
	ManifestDigest string // "sha256:…"
	Manifest       []byte
	Config         []byte
	DiffIDs        []string // of the layers, in order
	// Tree is the layers merged, nothing else changed. WriteImage changes it.
	Tree *fstree.Tree
	// Tags name the image and keep it, and all that belongs to it, from
	// garbage collection; BootTag is bootc's.
	Tags []string
	// KeepUser keeps user.* xattrs in the image for booting.
	KeepUser bool
	// Expect, if set, is the digest that the image for booting must have, as a
	// UKI says it. Where it only has it with user.* xattrs, they are kept.
	Expect Digest
	// Raw also writes the image of the tree as a container shows it, as bootc
	// and cfsctl do when they pull; they write it themselves where it lacks.
	Raw bool
	// Tool is a mkcomposefs program that writes the images, see WriteImageWith.
	Tool string
}

// Written tells what WriteImage wrote.
type Written struct {
	Boot     ImageInfo  // the image for booting
	Raw      *ImageInfo // the image as a container shows it, if asked for
	Files    *Files     // what is in Boot, but for what composefs adds
	Manifest Digest     // of the manifest's stream
	Config   Digest
}

// WriteImage writes images and streams of a container and tags it. Order: every
// object, sync, the names of layers, images, config and manifest, sync, the
// tags. The first tag is the commit point; before it, what has a name is
// complete, and garbage collection takes it away.
func (im *Import) WriteImage(ctx context.Context, c Container) (*Written, error) {
	w := &containerWriter{Import: im, c: c, out: &Written{}, links: make(map[string]string)}
	for _, step := range []func(context.Context) error{w.check, w.images, w.streams, w.commit} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("write the composefs image of %s: %w", c.ManifestDigest, err)
		}
	}
	return w.out, nil
}

type containerWriter struct {
	*Import
	c      Container
	out    *Written
	config string // digest of the config
	order  []string
	links  map[string]string // name → object's path, to be made in order
	layers []streamRef
	refs   []streamRef // of the config to images
}

func (w *containerWriter) check(context.Context) error {
	if got := sha256Digest(w.c.Manifest); got != w.c.ManifestDigest {
		return fault.New(fault.Untrusted, "", "the manifest has the digest %s", got)
	}
	w.config = sha256Digest(w.c.Config)
	var m struct {
		Config struct{ Digest string }
	}
	if err := json.Unmarshal(w.c.Manifest, &m); err != nil {
		return fault.New(fault.Corrupt, "", "read the manifest: %w", err)
	}
	if m.Config.Digest != w.config {
		return fault.New(fault.Untrusted, "", "the config has the digest %s, the manifest says %s", w.config, m.Config.Digest)
	}
	for _, tag := range w.c.Tags {
		if tag == "" || tag[0] == '@' || strings.ContainsRune(tag, 0) || tag == "." || tag == ".." {
			return fault.New(fault.Usage, "", "%q is no name for an image", tag)
		}
	}
	for _, id := range w.c.DiffIDs {
		w.mu.Lock()
		l := w.Import.layers[id]
		w.mu.Unlock()
		if l == nil || l.stream == "" {
			return fault.New(fault.Internal, "", "layer %s was not imported with its archive", id)
		}
		l.index = nil // merged; what is saved of it comes from the stage
		w.layers = append(w.layers, streamRef{id, l.stream})
		w.link("streams/"+layerStream(id), l.stream)
	}
	return nil
}

func sha256Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (w *containerWriter) link(name string, d Digest) {
	if _, ok := w.links[name]; !ok {
		w.order = append(w.order, name)
	}
	w.links[name] = objectPath(d)
}

// images writes the images as objects.
func (w *containerWriter) images(ctx context.Context) error {
	if w.c.Raw {
		info, _, err := w.image(ctx, PrepareOptions{})
		if err != nil {
			return err
		}
		w.out.Raw = &info
		w.refs = append(w.refs, streamRef{refRawImage, info.Digest})
	}
	ref := refBootImage
	for _, keep := range []bool{w.c.KeepUser, true} {
		info, tree, err := w.image(ctx, PrepareOptions{Boot: true, KeepUser: keep, Own: w.c.Expect == "", Open: w.OpenContent})
		if err != nil {
			return err
		}
		if keep {
			ref = refBootImage + ".xattrs=keep-user-xattrs"
		}
		if w.c.Expect == "" || info.Digest == w.c.Expect {
			w.out.Boot, w.out.Files = info, w.filesOf(tree)
			w.refs = append(w.refs, streamRef{ref, info.Digest})
			return nil
		}
	}
	return fault.New(fault.Untrusted, "rebuild the image: its UKI belongs to another tree", "the image does not have the digest %s that its UKI says", w.c.Expect)
}

func (w *containerWriter) image(ctx context.Context, o PrepareOptions) (ImageInfo, *fstree.Tree, error) {
	tree, err := Prepare(w.c.Tree, o)
	if err != nil {
		return ImageInfo{}, nil, err
	}
	var info ImageInfo
	err = w.sink.produce(func(to io.Writer) (_ Digest, _ int64, err error) {
		info, err = WriteImageWith(ctx, w.c.Tool, to, View(tree, w.file), w.repo.meta.imageOptions())
		return info.Digest, info.Size, errors.Join(err, ctx.Err())
	})
	if err != nil {
		return info, nil, err
	}
	w.link("images/"+info.Digest.String(), info.Digest)
	return info, tree, nil
}

// streams writes config and manifest as objects. An image that the config of an
// earlier import refers to stays referred to.
func (w *containerWriter) streams(context.Context) error {
	for _, old := range w.repo.configImages(configStream(w.config)) {
		if !slices.ContainsFunc(w.refs, func(r streamRef) bool { return r.Name == old.Name }) {
			w.refs = append(w.refs, old)
		}
	}
	var err error
	if w.out.Config, err = w.document(typeConfig, w.c.Config, slices.Concat(w.layers, w.refs)); err != nil {
		return err
	}
	w.link("streams/"+configStream(w.config), w.out.Config)
	refs := append([]streamRef{{refConfig + w.config, w.out.Config}}, w.layers...)
	if w.out.Manifest, err = w.document(typeManifest, w.c.Manifest, refs); err != nil {
		return err
	}
	w.link("streams/"+manifestStream(w.c.ManifestDigest), w.out.Manifest)
	return nil
}

// document writes a stream of one object.
func (w *containerWriter) document(kind uint64, data []byte, refs []streamRef) (Digest, error) {
	object, err := w.sink.add(data)
	if err != nil {
		return "", err
	}
	s := newStreamWriter(w.repo.meta.alg, kind)
	if err := s.Object(object, uint64(len(data))); err != nil {
		return "", err
	}
	stream, err := s.Finish(uniqueRefs(refs))
	if err != nil {
		return "", err
	}
	return w.sink.add(stream)
}

// uniqueRefs drops repeated names: an image may have the same layer twice.
func uniqueRefs(refs []streamRef) []streamRef {
	seen := make(map[string]bool, len(refs))
	return slices.DeleteFunc(slices.Clone(refs), func(r streamRef) bool {
		if seen[r.Name] {
			return true
		}
		seen[r.Name] = true
		return false
	})
}

func (w *containerWriter) commit(context.Context) error {
	if w.sink.to != &w.repo.objects {
		// Staged objects are whole on disk before they get their names.
		if err := w.repo.sync(); err != nil {
			return err
		}
		if err := w.stage.publish(w.sink.damage); err != nil {
			return err
		}
	}
	if err := w.repo.sync(); err != nil {
		return err
	}
	for _, name := range w.order {
		if err := w.repo.symlink(name, w.links[name]); err != nil {
			return err
		}
	}
	if err := w.saveLayers(w.c.DiffIDs); err != nil {
		return err
	}
	if err := w.repo.sync(); err != nil {
		return err
	}
	for _, tag := range w.c.Tags {
		if err := w.repo.tag(tag, w.c.ManifestDigest); err != nil {
			return err
		}
	}
	if err := w.stage.clearLayers(w.c.DiffIDs); err != nil {
		return err
	}
	return nil
}

func (s *importStage) clearLayers(diffIDs []string) error {
	for _, id := range diffIDs {
		name, err := layerFileName(id)
		if err != nil {
			return err
		}
		if err := s.root.Remove(layersDir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a staged layer: %w", err)
		}
	}
	return nil
}

const tagDir = "streams/refs/"

func (r *Repo) tag(tag, manifestDigest string) error {
	ref := tagDir + tagRef(tag)
	if err := r.symlink(ref, "streams/"+manifestStream(manifestDigest)); err != nil {
		return fmt.Errorf("tag the image as %s: %w", tag, err)
	}
	return atomicfile.SyncDir(r.root, tagDir+"oci")
}

// Tags returns the tags of the repository and the manifest digest of each.
func (r *Repo) Tags() (map[string]string, error) {
	d, err := r.root.Open(tagDir + "oci")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the tags: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list the tags: %w", err)
	}
	tags := make(map[string]string, len(names))
	for _, name := range names {
		if isTemp(name) {
			continue
		}
		target, err := r.root.Readlink(tagDir + "oci/" + name)
		if err != nil {
			continue // a name of somebody else's that is no tag
		}
		tag, _ := tagOf("oci/" + name)
		if manifest, ok := strings.CutPrefix(target[strings.LastIndexByte(target, '/')+1:], "oci-manifest-"); ok {
			tags[tag] = manifest
		}
	}
	return tags, nil
}

// Untag removes a tag; one that is not there is no error. What only it kept goes
// with the next garbage collection.
func (r *Repo) Untag(tag string) error {
	if err := r.meta.writable(); err != nil {
		return err
	}
	unlock, err := r.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	err = r.root.Remove(tagDir + tagRef(tag))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the tag %s: %w", tag, err)
	}
	return atomicfile.SyncDir(r.root, tagDir+"oci")
}

// StoredImage is an OCI image that a repository has.
type StoredImage struct {
	ManifestDigest string
	Manifest       []byte
	Config         []byte
	DiffIDs        []string // of the layers that the config refers to
	Images         map[string]Digest
}

// Boot returns the digest of the image for booting, or "".
func (s *StoredImage) Boot() Digest { return s.Images[refBootImage] }

// maxDocument bounds manifests and configs, maxStream splitstreams.
const (
	maxDocument = 16 << 20
	maxStream   = 1 << 30
)

// ReadImage reads manifest and config of an image. Where the repository has no
// such image the error is fs.ErrNotExist.
func (r *Repo) ReadImage(manifestDigest string) (*StoredImage, error) {
	out := &StoredImage{ManifestDigest: manifestDigest, Images: make(map[string]Digest)}
	fail := func(err error) (*StoredImage, error) {
		return nil, fmt.Errorf("read image %s in the composefs repository: %w", manifestDigest, err)
	}
	_, manifest, data, err := r.readDocument(manifestStream(manifestDigest), typeManifest)
	if err != nil {
		return fail(err)
	}
	out.Manifest = data
	if got := sha256Digest(data); got != manifestDigest {
		return fail(fault.New(fault.Corrupt, "run kedge fsck --repair", "the manifest has the digest %s", got))
	}
	i := slices.IndexFunc(manifest.Refs, func(s streamRef) bool { return strings.HasPrefix(s.Name, refConfig) })
	if i < 0 {
		return fail(fault.New(fault.Corrupt, "", "its manifest refers to no config"))
	}
	config, err := r.readStream(manifest.Refs[i].Object, typeConfig)
	if err != nil {
		return fail(err)
	}
	if out.Config, err = r.onlyObject(config); err != nil {
		return fail(err)
	}
	if got := sha256Digest(out.Config); refConfig+got != manifest.Refs[i].Name {
		return fail(fault.New(fault.Corrupt, "run kedge fsck --repair", "the config has the digest %s", got))
	}
	for _, ref := range config.Refs {
		if strings.HasPrefix(ref.Name, refImages) {
			out.Images[ref.Name] = ref.Object
		} else {
			out.DiffIDs = append(out.DiffIDs, ref.Name)
		}
	}
	return out, nil
}

// configImages returns the references to images of a config that is stored, if
// it is.
func (r *Repo) configImages(stream string) []streamRef {
	_, s, _, err := r.readDocument(stream, typeConfig)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(s.Refs, func(ref streamRef) bool {
		if !strings.HasPrefix(ref.Name, refImages) {
			return true
		}
		_, err := r.objects.size(ref.Object)
		return err != nil
	})
}

// readDocument reads a stream of one object, and the object.
func (r *Repo) readDocument(name string, kind uint64) (Digest, *splitstream, []byte, error) {
	d, err := r.linked("streams/" + name)
	if err != nil {
		return "", nil, nil, err
	}
	s, err := r.readStream(d, kind)
	if err != nil {
		return "", nil, nil, err
	}
	data, err := r.onlyObject(s)
	return d, s, data, err
}

func (r *Repo) onlyObject(s *splitstream) ([]byte, error) {
	if len(s.Objects) != 1 {
		return nil, fault.New(fault.Corrupt, "", "a stream of one object refers to %d", len(s.Objects))
	}
	return r.readObject(s.Objects[0], maxDocument)
}

// readStream reads a splitstream of a content type, or of any if kind is 0.
func (r *Repo) readStream(d Digest, kind uint64) (*splitstream, error) {
	data, err := r.readObject(d, maxStream)
	if err != nil {
		return nil, err
	}
	s, err := decodeStream(data, r.meta.alg)
	if err != nil {
		return nil, err
	}
	if kind != 0 && s.Kind != kind {
		return nil, fault.New(fault.Corrupt, "", "stream %s is of another kind than its name says", d)
	}
	return s, nil
}
