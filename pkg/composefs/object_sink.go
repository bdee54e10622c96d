package composefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/internal/writeback"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// objectSink is where an import's objects go: to the repository's own directory
// if fs-verity makes them durable before they have a name, else first to the
// staging directory.
type objectSink struct {
	repo   *Repo
	to     *objectDir
	damage map[Digest]bool // objects to replace whatever they look like

	lacks     [256]atomic.Bool // directories of objects that the repository has not
	hashers   sync.Pool
	writeback writeback.Writer // of the staging directory
}

// staging reports whether objects go to the staging directory.
func (s *objectSink) staging() bool { return s.to != &s.repo.objects }

func (s *objectSink) has(d Digest, size int64) bool {
	if s.damage[d] {
		return false
	}
	return s.stored(d, size) || s.staging() && s.to.has(d, size)
}

// stored reports whether the repository has an object. That it never had a
// directory for it is asked once: what another program adds meanwhile is the
// same object.
func (s *objectSink) stored(d Digest, size int64) bool {
	if s.lacks[d[0]].Load() {
		return false
	}
	if s.staging() {
		if _, err := s.repo.objects.sub(d[0], false); errors.Is(err, fs.ErrNotExist) {
			s.lacks[d[0]].Store(true)
			return false
		}
	}
	return s.repo.objects.has(d, size)
}

// add stores data under its digest.
func (s *objectSink) add(data []byte) (Digest, error) {
	v, _ := s.hashers.Get().(*fsverity.Hasher)
	if v == nil {
		v = fsverity.New(s.repo.meta.alg)
	}
	defer s.hashers.Put(v)
	v.Reset()
	if _, err := v.Write(data); err != nil {
		return "", err
	}
	d := v.Sum()
	return d, s.addKnown(d, data)
}

// addKnown stores data whose digest is d. No process is started while the file
// can be written to, so that the kernel never refuses to seal it.
func (s *objectSink) addKnown(d Digest, data []byte) error {
	if s.staging() && s.repo.noVerity.Load() && !s.damage[d] {
		if s.stored(d, int64(len(data))) {
			return nil
		}
		s.writeback.Add(int64(len(data)))
		return s.to.place(d, data)
	}
	if s.has(d, int64(len(data))) {
		return nil
	}
	defer fsverity.HoldForks()()
	t, err := s.to.newTemp()
	if err != nil {
		return err
	}
	defer t.discard()
	if _, err := t.w.Write(data); err != nil {
		return fmt.Errorf("write an object: %w", err)
	}
	return s.finish(t, d)
}

func (s *objectSink) finish(t *objectTemp, d Digest) error {
	if err := t.freeze(); err != nil {
		return err
	}
	if err := s.repo.seal(t, d); err != nil {
		return err
	}
	return s.to.link(t, d, s.damage[d])
}

// produce stores what write writes, as it is written, under the digest that it
// returns.
func (s *objectSink) produce(write func(io.Writer) (Digest, int64, error)) error {
	t, err := s.to.newTemp()
	if err != nil {
		return err
	}
	defer t.discard()
	d, size, err := write(t.w)
	if err != nil || s.has(d, size) {
		return err
	}
	return s.finish(t, d)
}

// stream stores what r has, size bytes, and returns its digest.
func (s *objectSink) stream(ctx context.Context, r io.Reader, size int64, buf []byte) (Digest, error) {
	t, err := s.to.newTemp()
	if err != nil {
		return "", err
	}
	defer t.discard()
	if err := unix.Fallocate(int(t.w.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size); errors.Is(err, unix.ENOSPC) {
		return "", fmt.Errorf("write an object of %d bytes: %w", size, err)
	}
	v := fsverity.New(s.repo.meta.alg)
	n, err := copyContext(ctx, io.MultiWriter(t.w, v), r, buf)
	if err == nil && n != size {
		err = wrongLength(n, size)
	}
	if err != nil {
		return "", err
	}
	d := v.Sum()
	if s.has(d, size) {
		return d, nil
	}
	if s.staging() {
		s.writeback.Add(size)
	}
	return d, s.finish(t, d)
}

func wrongLength(n, size int64) error {
	return fault.New(fault.Corrupt, "", "%d bytes came of %d", n, size)
}

func copyContext(ctx context.Context, w io.Writer, r io.Reader, buf []byte) (n int64, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, err := r.Read(buf)
		if k > 0 {
			if _, err := w.Write(buf[:k]); err != nil {
				return n, err
			}
			n += int64(k)
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// Modes of objects in a staging directory, which tell what a process that was
// killed has left: place writes an object under its name and makes it whole last.
const (
	tornMode  = 0o600
	wholeMode = 0o644
)

// place writes an object of a staging directory that is not to be sealed, for
// less than a file without a name and a link to it take. One that is there is
// whole, or another layer of the same import is writing it.
func (o *objectDir) place(d Digest, data []byte) (err error) {
	dir, err := o.sub(d[0], true)
	if err != nil {
		return err
	}
	name := d.String()[2:]
	fd, err := openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, tornMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = writeAll(fd, data)
		if err == nil {
			err = unix.Fchmod(fd, wholeMode)
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			_ = unix.Unlinkat(int(dir.Fd()), name, 0)
		}
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: dir.Name() + "/" + name, Err: err}
	}
	return nil
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		p = p[max(n, 0):]
	}
	return nil
}

// removeTorn removes the objects that are not whole.
func (o *objectDir) removeTorn() error {
	for first := range 256 {
		dir, err := o.sub(byte(first), false)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		names, err := dir.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, name := range names {
			var st unix.Stat_t
			err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
			if err == nil && st.Mode&0o7777 != wholeMode {
				err = unix.Unlinkat(int(dir.Fd()), name, 0)
			}
			if err != nil {
				return &fs.PathError{Op: "remove", Path: dir.Name() + "/" + name, Err: err}
			}
		}
	}
	return nil
}
