package main

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// file is one entry to pack: its tar header and where its bytes are.
type file struct {
	header *tar.Header
	source string
}

// scan lists root in path order. A second name of an inode becomes a hard link
// to the first.
func scan(root string) ([]file, error) {
	var files []file
	first := map[[2]uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return nil
		}
		h := header(name, &st)
		if h.Typeflag != tar.TypeDir && st.Nlink > 1 {
			id := [2]uint64{st.Dev, st.Ino}
			if target, ok := first[id]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, target, 0
				files = append(files, file{header: h, source: path})
				return nil
			}
			first[id] = name
		}
		if h.Typeflag == tar.TypeSymlink {
			if h.Linkname, err = os.Readlink(path); err != nil {
				return err
			}
		}
		if h.PAXRecords, err = xattrs(path); err != nil {
			return err
		}
		files = append(files, file{header: h, source: path})
		return nil
	})
	return files, err
}

func header(name string, st *unix.Stat_t) *tar.Header {
	h := &tar.Header{
		Format:  tar.FormatPAX,
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, 0),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	}
	return h
}

// xattrs reads what an image carries: no labels of the machine that packs it.
func xattrs(path string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	var records map[string]string
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10)
		m, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, &fs.PathError{Op: "lgetxattr", Path: path, Err: err}
		}
		if records == nil {
			records = map[string]string{}
		}
		records["SCHILY.xattr."+name] = string(value[:m])
	}
	return records, nil
}

// split cuts files, in order, into n runs of like size in bytes.
func split(files []file, n int) [][]file {
	total := int64(0)
	for _, f := range files {
		total += f.header.Size + 512
	}
	parts := make([][]file, 0, n)
	start, sum := 0, int64(0)
	for i, f := range files {
		sum += f.header.Size + 512
		if len(parts) < n-1 && sum >= total*int64(len(parts)+1)/int64(n) {
			parts = append(parts, files[start:i+1])
			start = i + 1
		}
	}
	return append(parts, files[start:])
}

// writeTar writes files as one tar stream.
func writeTar(w io.Writer, files []file) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		if err := tw.WriteHeader(f.header); err != nil {
			return err
		}
		if f.header.Typeflag != tar.TypeReg {
			continue
		}
		if err := copyFile(tw, f.source); err != nil {
			return err
		}
	}
	return tw.Close()
}

func copyFile(w io.Writer, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(w, in)
	return err
}
