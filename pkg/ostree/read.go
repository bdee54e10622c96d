package ostree

import (
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
	"github.com/kedge-os/kedge/pkg/ostree/object"
)

// FileMeta is the metadata of a file object.
type FileMeta struct {
	object.Meta
	Size int64 // regular files: length in bytes
}

// IsSymlink reports whether the object is a symlink.
func (m *FileMeta) IsSymlink() bool { return m.Mode&unix.S_IFMT == unix.S_IFLNK }

// objectError gives the error about an object that cannot be read its kind: one
// that is not there makes the repository incomplete.
func (r *Repo) objectError(n object.Name, err error) error {
	err = fmt.Errorf("read the object %s of %s: %w", n, r.path, err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &fault.Error{Kind: fault.Corrupt, Hint: "run kedge fsck to see what else is missing", Err: err}
	case errors.Is(err, object.ErrFormat):
		return &fault.Error{Kind: fault.Corrupt, Hint: "run kedge fsck to see what else is damaged", Err: err}
	}
	return err
}

// ReadMeta returns the bytes of a metadata object (commit, dirtree, dirmeta,
// commitmeta). They are not checked against the checksum; Fsck does that.
func (r *Repo) ReadMeta(n object.Name) ([]byte, error) {
	data, err := r.readMeta(n)
	if err != nil {
		return nil, r.objectError(n, err)
	}
	return data, nil
}

func (r *Repo) readMeta(n object.Name) ([]byte, error) {
	return readFileAt(r.objects, n.Path(r.mode == Archive), object.MaxMetadata)
}

// HasObject reports whether an object is there.
func (r *Repo) HasObject(n object.Name) (bool, error) {
	return existsAt(r.objects, n.Path(r.mode == Archive))
}

// ReadCommit returns a commit. A missing one is an error of kind NotFound.
func (r *Repo) ReadCommit(c Checksum) (*object.Commit, error) {
	n := object.Name{Checksum: c, Type: object.TypeCommit}
	data, err := r.readMeta(n)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "", "commit %s is not in the ostree repository %s: %w", c, r.path, err)
	}
	if err != nil {
		return nil, r.objectError(n, err)
	}
	out, err := object.DecodeCommit(data)
	if err != nil {
		return nil, r.objectError(n, err)
	}
	return out, nil
}

// ReadCommitMeta returns a commit's detached metadata; nil where it has none.
func (r *Repo) ReadCommitMeta(c Checksum) (object.Dict, error) {
	n := object.Name{Checksum: c, Type: object.TypeCommitMeta}
	data, err := r.readMeta(n)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, r.objectError(n, err)
	}
	d, err := object.DecodeDict(data)
	if err != nil {
		return nil, r.objectError(n, err)
	}
	return d, nil
}

// ReadDirtree returns the entries of a dirtree.
func (r *Repo) ReadDirtree(c Checksum) ([]object.FileEntry, []object.DirEntry, error) {
	n := object.Name{Checksum: c, Type: object.TypeDirtree}
	data, err := r.ReadMeta(n)
	if err != nil {
		return nil, nil, err
	}
	files, dirs, err := object.DecodeDirtree(data)
	if err != nil {
		return nil, nil, r.objectError(n, err)
	}
	return files, dirs, nil
}

// ReadDirmeta returns a directory's metadata.
func (r *Repo) ReadDirmeta(c Checksum) (object.Meta, error) {
	n := object.Name{Checksum: c, Type: object.TypeDirmeta}
	data, err := r.ReadMeta(n)
	if err != nil {
		return object.Meta{}, err
	}
	m, err := object.DecodeDirmeta(data)
	if err != nil {
		return m, r.objectError(n, err)
	}
	return m, nil
}

// OpenFile opens a file object: its metadata, and for a regular file a reader
// of its content (for a symlink the reader is empty). In the modes that keep
// content as it is, the reader is an *os.File.
func (r *Repo) OpenFile(c Checksum) (FileMeta, io.ReadCloser, error) {
	m, rc, err := r.openFile(r.objects, c)
	if err != nil {
		return m, nil, r.objectError(object.Name{Checksum: c, Type: object.TypeFile}, err)
	}
	return m, rc, nil
}

// noContent is what a symlink's reader has; without state, since everybody
// shares it.
var noContent io.ReadCloser = empty{}

type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.EOF }
func (empty) Close() error             { return nil }

func (r *Repo) openFile(dir *os.File, c Checksum) (FileMeta, io.ReadCloser, error) {
	path := object.Name{Checksum: c, Type: object.TypeFile}.Path(r.mode == Archive)
	f, st, err := openFileAt(dir, path)
	if errors.Is(err, unix.ELOOP) && (r.mode == Bare || r.mode == BareUserOnly || r.mode == BareSplitXattrs) {
		m, err := r.readSymlink(dir, path, c)
		return m, noContent, err
	}
	if err != nil {
		return FileMeta{}, nil, err
	}
	m := FileMeta{Size: st.Size, Meta: object.Meta{UID: st.Uid, GID: st.Gid, Mode: st.Mode}}
	var content io.ReadCloser = f
	switch r.mode {
	case Archive:
		m, content, err = openArchive(f)
	case BareUser:
		m, content, err = openBareUser(f, st.Size)
	case BareUserOnly:
		m.UID, m.GID = 0, 0
	case BareSplitXattrs:
		m.Xattrs, err = r.splitXattrs(dir, c)
	default:
		m.Xattrs, err = fdXattrs(int(f.Fd()))
	}
	if err != nil {
		_ = f.Close()
		return m, nil, err
	}
	return m, content, nil
}

func (r *Repo) readSymlink(dir *os.File, path string, c Checksum) (m FileMeta, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return m, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	m.UID, m.GID, m.Mode = st.Uid, st.Gid, st.Mode
	if m.Target, err = readLinkAt(dir, path); err != nil {
		return m, err
	}
	switch r.mode {
	case BareUserOnly:
		m.UID, m.GID = 0, 0
	case BareSplitXattrs:
		m.Xattrs, err = r.splitXattrs(dir, c)
	default:
		m.Xattrs, err = linkXattrs(dir, path)
	}
	return m, err
}

// splitXattrs reads the xattrs of a file object in mode bare-split-xattrs.
func (r *Repo) splitXattrs(dir *os.File, c Checksum) ([]fstree.Xattr, error) {
	data, err := readFileAt(dir, object.Name{Checksum: c, Type: object.TypeFileXattrsLink}.Path(false), object.MaxMetadata)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return object.DecodeXattrs(data)
}

// openBareUser reads user.ostreemeta; the content of a symlink's file is its
// target.
func openBareUser(f *os.File, size int64) (m FileMeta, rc io.ReadCloser, err error) {
	raw, err := growing(func(b []byte) (int, error) { return unix.Fgetxattr(int(f.Fd()), "user.ostreemeta", b) })
	if err != nil {
		return m, nil, fmt.Errorf("read user.ostreemeta: %w", err)
	}
	if m.Meta, err = object.DecodeFileMeta(raw); err != nil {
		return m, nil, err
	}
	if !m.IsSymlink() {
		m.Size = size
		return m, f, nil
	}
	target, err := io.ReadAll(io.LimitReader(f, unix.PathMax+1))
	if err != nil {
		return m, nil, err
	}
	text, ok := strings.CutSuffix(string(target), "\x00")
	if !ok || object.CheckTarget(text) != nil {
		return m, nil, fmt.Errorf("symlink of %d bytes: %w", size, object.ErrFormat)
	}
	m.Target = text
	return m, noContent, f.Close()
}

// openArchive reads the header of a .filez object.
func openArchive(f *os.File) (m FileMeta, rc io.ReadCloser, err error) {
	var prefix [8]byte
	if _, err := io.ReadFull(f, prefix[:]); err != nil {
		return m, nil, fmt.Errorf("%w: %w", object.ErrFormat, err)
	}
	n, err := object.HeaderLen(prefix)
	if err != nil {
		return m, nil, err
	}
	header, err := io.ReadAll(io.LimitReader(f, int64(n)))
	if err != nil {
		return m, nil, err
	}
	var size uint64
	if m.Meta, size, err = object.DecodeArchiveHeader(header); err != nil {
		return m, nil, err
	}
	if size > math.MaxInt64 {
		return m, nil, fmt.Errorf("%w: %d bytes", object.ErrFormat, size)
	}
	if m.IsSymlink() {
		return m, noContent, f.Close()
	}
	m.Size = int64(size)
	return m, &inflater{z: flate.NewReader(f), f: f, left: m.Size}, nil
}

// inflater inflates exactly as many bytes as the header says.
type inflater struct {
	z    io.ReadCloser
	f    *os.File
	left int64
}

func (i *inflater) Read(p []byte) (int, error) {
	if i.left <= 0 {
		var one [1]byte
		if n, _ := i.z.Read(one[:]); n > 0 {
			return 0, fmt.Errorf("%w: more content than its header says", object.ErrFormat)
		}
		return 0, io.EOF
	}
	n, err := i.z.Read(p[:min(int64(len(p)), i.left)])
	i.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF) && i.left > 0:
		err = fmt.Errorf("%w: %d bytes less than its header says", object.ErrFormat, i.left)
	case errors.Is(err, io.EOF):
		err = nil
	case err != nil:
		err = fmt.Errorf("%w: %w", object.ErrFormat, err)
	}
	return n, err
}

func (i *inflater) Close() error { return errors.Join(i.z.Close(), i.f.Close()) }
