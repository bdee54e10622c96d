package object

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/kedge-os/kedge/internal/gvariant"
)

// FileEntry is a name of a file object (regular file or symlink) in a dirtree.
type FileEntry struct {
	Name     string
	Checksum Checksum
}

// DirEntry is a name of a subdirectory in a dirtree.
type DirEntry struct {
	Name       string
	Tree, Meta Checksum
}

const (
	filesType = "a(say)"
	dirsType  = "a(sayay)"
	treeType  = "(" + filesType + dirsType + ")"
)

// NameError tells why a file name cannot stand in a dirtree. libostree stores
// names as GVariant strings, so a name that is not UTF-8 has no representation.
type NameError struct {
	Name   string
	Reason string
}

func (e *NameError) Error() string {
	return fmt.Sprintf("file name %q cannot be stored in an ostree commit: %s", e.Name, e.Reason)
}

// CheckName returns a *NameError for a name that a dirtree cannot hold.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return &NameError{name, "it does not name a file"}
	case strings.ContainsAny(name, "/\x00"):
		return &NameError{name, "it contains a slash or a NUL byte"}
	case !utf8.ValidString(name):
		return &NameError{name, "it is not UTF-8"}
	}
	return nil
}

// EncodeDirtree encodes a dirtree. Both lists must be in bytewise order of
// their names, which must have passed CheckName.
func EncodeDirtree(files []FileEntry, dirs []DirEntry) []byte {
	fv := make([]gvariant.Value, len(files))
	for i := range files {
		fv[i] = gvariant.Tuple(gvariant.String(files[i].Name), gvariant.Bytes(files[i].Checksum[:]))
	}
	dv := make([]gvariant.Value, len(dirs))
	for i := range dirs {
		dv[i] = gvariant.Tuple(gvariant.String(dirs[i].Name), gvariant.Bytes(dirs[i].Tree[:]), gvariant.Bytes(dirs[i].Meta[:]))
	}
	return gvariant.Tuple(gvariant.Array(filesType[1:], fv), gvariant.Array(dirsType[1:], dv)).Data
}

var (
	treeShape = gvariant.StructOf(treeType)
	fileShape = gvariant.StructOf(filesType[1:])
	dirShape  = gvariant.StructOf(dirsType[1:])
)

// DecodeDirtree decodes a dirtree. Names are valid, unique and in order.
func DecodeDirtree(data []byte) (files []FileEntry, dirs []DirEntry, err error) {
	top, err := treeShape.Split(nil, data)
	if err != nil {
		return nil, nil, malformed("dirtree", "%w", err)
	}
	var m []gvariant.Value
	last := ""
	err = top[0].Each(func(v gvariant.Value) error {
		if m, err = fileShape.Split(m[:0], v.Data); err != nil {
			return err
		}
		var e FileEntry
		if e.Name, err = entryName(m[0], last); err != nil {
			return err
		}
		if e.Checksum, err = checksumFrom(m[1].Data); err != nil {
			return err
		}
		last = e.Name
		files = append(files, e)
		return nil
	})
	if err != nil {
		return nil, nil, malformed("dirtree", "file %d: %w", len(files), err)
	}
	last = ""
	err = top[1].Each(func(v gvariant.Value) error {
		if m, err = dirShape.Split(m[:0], v.Data); err != nil {
			return err
		}
		var e DirEntry
		if e.Name, err = entryName(m[0], last); err != nil {
			return err
		}
		if e.Tree, err = checksumFrom(m[1].Data); err != nil {
			return err
		}
		if e.Meta, err = checksumFrom(m[2].Data); err != nil {
			return err
		}
		last = e.Name
		dirs = append(dirs, e)
		return nil
	})
	if err != nil {
		return nil, nil, malformed("dirtree", "directory %d: %w", len(dirs), err)
	}
	for i, j := 0, 0; i < len(files) && j < len(dirs); {
		switch c := strings.Compare(files[i].Name, dirs[j].Name); {
		case c == 0:
			return nil, nil, malformed("dirtree", "%q is both a file and a directory", files[i].Name)
		case c < 0:
			i++
		default:
			j++
		}
	}
	return files, dirs, nil
}

func entryName(v gvariant.Value, last string) (string, error) {
	name, err := v.Str()
	if err != nil {
		return "", err
	}
	if err := CheckName(name); err != nil {
		return "", err
	}
	if name <= last {
		return "", fmt.Errorf("%q stands after %q", name, last)
	}
	return name, nil
}
