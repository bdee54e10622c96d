package layering

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// whiteoutPrefix marks a removed name (OCI image-spec, layer.md, "Whiteouts").
const whiteoutPrefix = ".wh."

// writeLayer writes the changes as an uncompressed OCI layer: PAX, ordered by
// path, times in whole seconds. It returns the tar's digest and length.
func writeLayer(cs changes, epoch time.Time, file string) (diffID string, size int64, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	sum := sha256.New()
	count := &countWriter{w: io.MultiWriter(f, sum)}
	w := tar.NewWriter(count)
	for _, name := range cs.sorted() {
		if err := writeChange(w, name, cs[name], epoch); err != nil {
			return "", 0, fmt.Errorf("write %s to the layer: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return "", 0, err
	}
	if err := f.Sync(); err != nil {
		return "", 0, err
	}
	return digest.NewDigest(digest.SHA256, sum).String(), count.n, f.Close()
}

func writeChange(w *tar.Writer, name string, c *change, epoch time.Time) error {
	h := &tar.Header{Format: tar.FormatPAX, Name: name, ModTime: epoch}
	if c.whiteout {
		h.Typeflag = tar.TypeReg
		h.Name = path.Join(path.Dir(name), whiteoutPrefix+path.Base(name))
		return w.WriteHeader(h)
	}
	h.Mode = int64(c.stat.Mode & 0o7777)
	h.Uid, h.Gid = int(c.stat.Uid), int(c.stat.Gid)
	if c.stat.Mtim.Sec > 0 {
		h.ModTime = time.Unix(c.stat.Mtim.Sec, 0)
	}
	if c.link != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, c.link
		return w.WriteHeader(h)
	}
	for name, value := range c.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	switch c.typ() {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, c.target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, c.stat.Size
		return writeContent(w, h, c)
	default:
		return fault.New(fault.Conflict, "leave out the package that has it", "a device node or socket cannot be a part of an image")
	}
	return w.WriteHeader(h)
}

func writeContent(w *tar.Writer, h *tar.Header, c *change) error {
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if c.src == "" {
		_, err := io.Copy(w, bytes.NewReader(c.data))
		return err
	}
	f, err := os.Open(c.src)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
