package composefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// DamageKind is what is wrong with a part of a repository.
type DamageKind uint8

// The kinds of damage.
const (
	BadContent DamageKind = iota + 1 // an object has not the digest that its name says, or cannot be read
	Unsealed                         // an object of a sealed repository has no fs-verity, or another digest
	Missing                          // an object is referred to but not there
	WrongSize                        // an object is not as long as an image says
	BadStream                        // a stream that cannot be read
	BadImage                         // an image that cannot be read
	BadLink                          // a name of an image or stream leads to no object
	BadName                          // a file among the objects that is none
)

var damageNames = map[DamageKind]string{
	BadContent: "damaged object", Unsealed: "object without fs-verity", Missing: "missing object", WrongSize: "object of the wrong length",
	BadStream: "unreadable stream", BadImage: "unreadable image", BadLink: "broken link", BadName: "stray file",
}

// String returns the kind in words.
func (k DamageKind) String() string { return damageNames[k] }

// Damage is one thing that is wrong. Object is empty where it is not about one.
type Damage struct {
	Kind   DamageKind
	Object Digest
	Path   string // beneath the repository; of what refers to a missing object
	Err    error  // may be nil
}

func (d Damage) String() string {
	if d.Err != nil {
		return fmt.Sprintf("%s: %s: %v", d.Kind, d.Path, d.Err)
	}
	return fmt.Sprintf("%s: %s", d.Kind, d.Path)
}

// FsckResult tells what fsck looked at and what is wrong, in the order of paths.
type FsckResult struct {
	Objects, Streams, Images int
	Bytes                    int64
	Damage                   []Damage
}

// Replaceable returns the objects that an import can replace: given as
// ImportOptions.Damaged, with the images imported again, the layers that need
// them are fetched anew.
func (f *FsckResult) Replaceable() []Digest {
	var out []Digest
	for _, d := range f.Damage {
		if d.Object != "" && !slices.Contains(out, d.Object) {
			out = append(out, d.Object)
		}
	}
	return out
}

// Fsck reads every object in full and measures it anew, parallel at once (0: as
// many as there are processors), then follows each name and each reference. It
// changes nothing and shuts out garbage collection; what an import adds
// meanwhile is looked at or not.
func (r *Repo) Fsck(ctx context.Context, parallel int) (*FsckResult, error) {
	unlock, err := r.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if parallel <= 0 {
		parallel = runtime.GOMAXPROCS(0)
	}
	c := &checker{repo: r}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for first := range 256 {
		g.Go(func() error { return c.objects(gctx, byte(first)) })
	}
	if err = g.Wait(); err == nil {
		err = c.names(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("check the composefs repository: %w", err)
	}
	slices.SortFunc(c.out.Damage, func(a, b Damage) int { return strings.Compare(a.Path, b.Path) })
	return &c.out, nil
}

type checker struct {
	repo *Repo
	mu   sync.Mutex
	out  FsckResult
}

func (c *checker) found(kind DamageKind, object Digest, path string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Damage = append(c.out.Damage, Damage{kind, object, path, err})
}

func (c *checker) objects(ctx context.Context, first byte) error {
	_, names, err := c.repo.objectNames(first)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := fmt.Sprintf("objects/%02x/%s", first, name)
		d, err := ParseDigest(fmt.Sprintf("%02x%s", first, name))
		if err != nil || d.Algorithm() != c.repo.meta.alg {
			c.found(BadName, "", path, nil)
			continue
		}
		if err := c.object(ctx, d, path); err != nil {
			return err
		}
	}
	return nil
}

// object reads an object, so that a disk's errors show, and compares. Its own
// error is that the check must end.
func (c *checker) object(ctx context.Context, d Digest, path string) error {
	f, size, err := c.repo.objects.openFile(d)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		c.found(BadContent, d, path, err)
		return nil
	}
	defer f.Close()
	got, err := fsverity.Of(ctx, f, size, c.repo.meta.alg)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		c.found(BadContent, d, path, err)
	case got != d:
		c.found(BadContent, d, path, fault.New(fault.Corrupt, "", "its digest is %s", got))
	default:
		c.sealed(f, d, path)
	}
	c.mu.Lock()
	c.out.Objects++
	c.out.Bytes += size
	c.mu.Unlock()
	return nil
}

func (c *checker) sealed(f *os.File, d Digest, path string) {
	if !c.repo.sealed {
		return
	}
	got, err := fsverity.Measure(f)
	if err == nil && got != d {
		err = fault.New(fault.Corrupt, "", "the kernel measured %s", got)
	}
	if err != nil {
		c.found(Unsealed, d, path, err)
	}
}

// names follows every name and what is behind it.
func (c *checker) names(ctx context.Context) error {
	return c.repo.eachLink(func(name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		d, err := c.repo.target(name)
		if errors.Is(err, fs.ErrNotExist) && d != "" {
			c.found(Missing, d, name, nil)
			return nil
		}
		if err != nil {
			c.found(BadLink, "", name, err)
			return nil
		}
		switch {
		case strings.Contains(name, "/refs/"):
		case strings.HasPrefix(name, "images/"):
			c.image(d, name)
		default:
			c.stream(d, name)
		}
		return nil
	})
}

func (c *checker) image(d Digest, name string) {
	c.out.Images++
	if name != "images/"+d.String() {
		c.found(BadLink, "", name, fault.New(fault.Corrupt, "", "it leads to image %s", d))
		return
	}
	objects, err := c.repo.imageObjects(d)
	if err != nil {
		c.found(BadImage, d, name, err)
		return
	}
	for o, size := range objects {
		c.refers(o, size, name)
	}
}

// refers notes an object that is not there; size is negative if unknown.
func (c *checker) refers(d Digest, size int64, name string) {
	if d.Algorithm() != c.repo.meta.alg {
		c.found(BadImage, "", name, fault.New(fault.Corrupt, "", "it refers to %s, which is no digest of this repository", d))
		return
	}
	got, err := c.repo.objects.size(d)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.found(Missing, d, name, nil)
	case err != nil:
		c.found(BadContent, d, name, err)
	case size >= 0 && got != size:
		c.found(WrongSize, d, name, fault.New(fault.Corrupt, "", "object %s has %d bytes, want %d", d, got, size))
	}
}

func (c *checker) stream(d Digest, name string) {
	c.out.Streams++
	s, err := c.repo.readStream(d, 0)
	if err != nil {
		c.found(BadStream, d, name, err)
		return
	}
	for _, o := range s.Objects {
		c.refers(o, -1, name)
	}
	for _, ref := range s.Refs {
		c.refers(ref.Object, -1, name)
	}
}
