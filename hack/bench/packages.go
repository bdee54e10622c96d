package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kedge-os/kedge/e2e/smallimage"
)

// The package that is added, which brings two others, and what the rows with it
// are called.
const (
	addedPackage = "lab-chain"

	packageAdd     = "packages, %s, add one"
	packageUpgrade = "packages, %s, upgrade to where they were"
	withoutThem    = ", without packages"
)

// manager is a package manager, in an image that has it.
type manager struct {
	name, program string
	repository    string // in what hack/lab/packages.sh makes
	// ready and add are shell commands in the image's root: to read the
	// repositories, and to add the package.
	ready, add string
}

var managers = []manager{
	{
		"apt", "apt-get in a chroot", "deb",
		"mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log; ln -sfn ../../usr/lib/sysimage/dpkg /var/lib/dpkg; apt-get -q update",
		"apt-get -q -y install " + addedPackage,
	},
	{"dnf", "dnf in a chroot", "rpm", "dnf -q -y --releasever=13 makecache", "dnf -q -y --releasever=13 install " + addedPackage},
}

// packages adds a small package, with the repositories' metadata read before, to
// a host and to a chroot of the same root; and moves a host back to an image on
// which its packages were before.
func (b *bench) packages(ctx context.Context) error {
	for _, m := range managers {
		add, upgrade := fmt.Sprintf(packageAdd, m.name), fmt.Sprintf(packageUpgrade, m.name)
		if b.lab == "" || !b.wanted(add) && !b.wanted(upgrade) {
			continue
		}
		if err := b.packagesOf(ctx, m, add, upgrade); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) packagesOf(ctx context.Context, m manager, add, upgrade string) error {
	url, done, err := serveFiles(filepath.Join(b.lab, m.repository))
	if err != nil {
		return err
	}
	defer done()
	img, err := b.packageImage(ctx, m, url)
	if err != nil {
		return err
	}
	other, err := derive(img, func() ([]byte, error) { return layerWith([]member{{"usr/share/kedge-bench", []byte("one file\n")}}) })
	if err != nil {
		return err
	}
	source := b.registry.image("moving")
	host := func(dir string, backend []string, verbs ...[]string) error {
		err := errors.Join(os.Mkdir(dir, 0o755), b.registry.push("moving", img), b.quietly(ctx, b.install(dir, source, backend)...))
		for _, verb := range verbs {
			err = errors.Join(err, b.quietly(ctx, b.on(dir, verb...)...))
		}
		return err
	}
	adding := func(backend []string) func(string) ([]string, error) {
		return func(dir string) ([]string, error) {
			return b.on(dir, "pkg", "add", addedPackage), host(dir, backend, []string{"pkg", "add", addedPackage, "--dry-run"})
		}
	}
	err = b.compare(ctx, add, b.runs, []program{
		{m.program, func(dir string) ([]string, error) {
			return inside(dir, m.add), errors.Join(b.unpackLab(ctx, m, dir, url), b.quietly(ctx, inside(dir, m.ready)...))
		}},
		{"kedge pkg add", adding(ostree)},
		{"kedge pkg add, composefs", adding(composefs)},
	})
	if err != nil {
		return err
	}
	returning := func(backend []string, verbs ...[]string) func(string) ([]string, error) {
		return func(dir string) ([]string, error) {
			return b.on(dir, "upgrade"), errors.Join(host(dir, backend, verbs...),
				b.registry.push("moving", other), b.quietly(ctx, b.on(dir, "upgrade")...), b.registry.push("moving", img))
		}
	}
	with := []string{"pkg", "add", addedPackage}
	return b.compare(ctx, upgrade, b.runs, []program{
		{"kedge upgrade" + withoutThem, returning(ostree)},
		{"kedge upgrade", returning(ostree, with)},
		{"kedge upgrade, composefs" + withoutThem, returning(composefs)},
		{"kedge upgrade, composefs", returning(composefs, with)},
	})
}

// on is a command line of kedge for a host.
func (b *bench) on(dir string, verb ...string) []string {
	return append([]string{b.kedge, "--sysroot", dir, "--progress-fd", progressFD}, verb...)
}

// inside is a command line of a shell in a root, with the machine's network.
func inside(root, script string) []string {
	return []string{
		"bwrap", "--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--perms", "1777", "--tmpfs", "/tmp",
		"--setenv", "DEBIAN_FRONTEND", "noninteractive", "--setenv", "PATH", "/usr/sbin:/usr/bin", "sh", "-ec", script,
	}
}

// packageImage is the lab's root with a package manager as an image that has the
// repository in its /etc.
func (b *bench) packageImage(ctx context.Context, m manager, url string) (v1.Image, error) {
	root, err := b.fixture(ctx, filepath.Base(b.lab)+"-"+m.name, func(w io.Writer) error {
		f, err := os.Open(filepath.Join(b.lab, m.name+".tar"))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err != nil {
		return nil, err
	}
	img, err := smallimage.Image("1", root)
	if err != nil {
		return nil, err
	}
	return derive(img, func() ([]byte, error) { return layerWith(repositoryFiles(url)) })
}

func repositoryFiles(url string) []member {
	return []member{
		{"etc/apt/sources.list", []byte("deb [trusted=yes] " + url + " ./\n")},
		{"etc/yum.repos.d/lab.repo", []byte("[lab]\nname=lab\nbaseurl=" + url + "\ngpgcheck=0\n")},
	}
}

// unpackLab makes the root of packageImage in a directory.
func (b *bench) unpackLab(ctx context.Context, m manager, dir, url string) error {
	err := errors.Join(os.Mkdir(dir, 0o755),
		b.quietly(ctx, "tar", "-C", dir, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xf", filepath.Join(b.lab, m.name+".tar")))
	for _, f := range repositoryFiles(url) {
		name := filepath.Join(dir, f.name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, f.body, 0o644))
	}
	return err
}

// serveFiles serves a directory on the loopback interface.
func serveFiles(dir string) (url string, done func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(dir))}
	go func() { _ = s.Serve(l) }()
	return "http://" + l.Addr().String(), func() { _ = s.Close() }, nil
}
