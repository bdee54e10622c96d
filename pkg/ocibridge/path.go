package ocibridge

import (
	"strings"
)

// cleanPath turns a tar name into the form of fstree: "./usr//bin/" becomes
// "usr/bin", "./" becomes "". Names that could lead out of the tree, or that no
// Linux file system can hold, are errors; the text says why.
func cleanPath(name string) (path, why string) {
	if name == "/" {
		return "", "" // kaniko writes the root so
	}
	if strings.HasPrefix(name, "/") {
		return "", "the name is absolute"
	}
	return cleanRelative(name)
}

// cleanLink is cleanPath for the target of a hard link, which some builders
// (kaniko) write with a leading slash. It stands for the image's root and
// cannot lead anywhere else.
func cleanLink(name string) (path, why string) {
	return cleanRelative(strings.TrimLeft(name, "/"))
}

func cleanRelative(name string) (path, why string) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", "the name contains a NUL byte"
	}
	clean := true
	for elem := range strings.SplitSeq(name, "/") {
		switch {
		case elem == "" || elem == ".":
			clean = false
		case elem == "..":
			return "", "the name leads out of its directory with \"..\""
		case len(elem) > maxName:
			return "", "a part of the name is longer than 255 bytes"
		}
	}
	if !clean {
		var b strings.Builder
		for elem := range strings.SplitSeq(name, "/") {
			if elem == "" || elem == "." {
				continue
			}
			if b.Len() > 0 {
				b.WriteByte('/')
			}
			b.WriteString(elem)
		}
		name = b.String()
	}
	if len(name) > maxPath {
		return "", "the name is longer than 4095 bytes"
	}
	return name, ""
}

// The marks of image-spec, layer.md "Whiteouts". What else begins with
// ".wh..wh." was aufs's bookkeeping and means nothing.
const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

type mark uint8

const (
	plain mark = iota
	whiteout
	opaque
	ignored
)

// parseMark tells what a path's whiteout marks say, and the path they say it
// of.
func parseMark(path string) (m mark, of, why string) {
	if !strings.Contains(path, whiteoutPrefix) {
		return plain, path, ""
	}
	dir, base := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, base = path[:i], path[i+1:]
	}
	for elem := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(elem, aufsPrefix) {
			return ignored, "", ""
		}
		if strings.HasPrefix(elem, whiteoutPrefix) {
			return plain, "", "it is inside a whiteout"
		}
	}
	switch {
	case base == opaqueName:
		return opaque, dir, ""
	case strings.HasPrefix(base, aufsPrefix):
		return ignored, "", ""
	case !strings.HasPrefix(base, whiteoutPrefix):
		return plain, path, ""
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return plain, "", "the whiteout names nothing"
	}
	if dir != "" {
		name = dir + "/" + name
	}
	return whiteout, name, ""
}
