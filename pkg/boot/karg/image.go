package karg

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/kedge-os/kedge/pkg/fault"
)

// ImageDirs are the directories in which an image keeps its own kernel
// arguments: bootc's, then ours.
var ImageDirs = []string{"usr/lib/bootc/kargs.d", "usr/lib/kedge/kargs.d"}

// Arch is the architecture's name as match-architectures has it, for this
// program's own machine.
func Arch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "386":
		return "x86"
	case "ppc64le", "ppc64":
		return "powerpc64"
	}
	return runtime.GOARCH
}

// maxFile bounds one file of an image's arguments.
const maxFile = 64 << 10

// fragment is one kargs.d file.
type fragment struct {
	Kargs              []string `toml:"kargs"`
	MatchArchitectures []string `toml:"match-architectures"`
}

// LoadDir reads an image's own arguments from the *.toml files of ImageDirs
// beneath root, in the order of their names, for the architecture arch.
func LoadDir(root fs.FS, arch string) (Args, error) {
	var args Args
	for _, dir := range ImageDirs {
		entries, err := fs.ReadDir(root, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the image's kernel arguments: %w", err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".toml") {
				continue
			}
			list, err := loadFile(root, path.Join(dir, e.Name()), arch)
			if err != nil {
				return nil, err
			}
			args = append(args, list...)
		}
	}
	return args, nil
}

func loadFile(root fs.FS, name, arch string) (Args, error) {
	if st, err := fs.Stat(root, name); err != nil || st.Size() > maxFile {
		return nil, fault.New(fault.Corrupt, "the image has to be repaired", "kernel arguments in %s: not a file of at most %d bytes", name, maxFile)
	}
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return nil, fmt.Errorf("read the image's kernel arguments: %w", err)
	}
	args, err := ParseFragment(string(text), arch)
	if err != nil {
		return nil, fault.New(fault.Corrupt, "the image has to be repaired", "kernel arguments in %s: %w", name, err)
	}
	return args, nil
}

// ParseFragment reads one kargs.d file. Keys it does not know are an error, as
// they are to bootc: a misspelt match-architectures must not apply everywhere. An
// argument that leads to the root is passed over: no image knows where it will lie.
func ParseFragment(text, arch string) (Args, error) {
	var f fragment
	meta, err := toml.Decode(text, &f)
	if err != nil {
		return nil, fmt.Errorf("not valid TOML: %w", err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("unknown key %q", unknown[0].String())
	}
	if f.MatchArchitectures != nil && !slices.Contains(f.MatchArchitectures, arch) {
		return nil, nil
	}
	var args Args
	for _, a := range f.Kargs {
		if strings.ContainsAny(a, "\n\r\x00") {
			return nil, fmt.Errorf("line break in %q", a)
		}
		for _, arg := range Parse(a) {
			switch {
			case !Whole(arg):
				return nil, fmt.Errorf("%q is not one kernel argument: a quote is not closed, or it has a control character", arg)
			case !slices.Contains(Root, Key(arg)):
				args = append(args, arg)
			}
		}
	}
	return args, nil
}
