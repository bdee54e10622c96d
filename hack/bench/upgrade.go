package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/klauspost/compress/gzip"
)

// upgrades starts from a host, or a podman store, that has the base image, and
// moves the tag that it follows.
func (b *bench) upgrades(ctx context.Context) error {
	base, err := b.registry.pull("base20")
	if err != nil {
		return err
	}
	for _, u := range []struct {
		name   string
		target func() (v1.Image, error)
	}{
		{"upgrade, no change", func() (v1.Image, error) { return base, nil }},
		{"upgrade, another image of the same layers", func() (v1.Image, error) { return relabelled(base) }},
		{"upgrade, one file", func() (v1.Image, error) {
			return derive(base, func() ([]byte, error) { return layerWith([]member{{"usr/share/kedge-bench", []byte("one file\n")}}) })
		}},
		{"upgrade, 1 % of the files", func() (v1.Image, error) {
			return derive(base, func() ([]byte, error) { return percentLayer(base) })
		}},
	} {
		if !b.wanted(u.name) {
			continue
		}
		target, err := u.target()
		if err != nil {
			return err
		}
		if err := b.move(ctx, u.name, "upgrade", base, target); err != nil {
			return err
		}
	}
	return nil
}

// move compares what programs take to get from one image to another, with the
// verb upgrade after the tag was moved, or with switch to another tag.
func (b *bench) move(ctx context.Context, name, verb string, from, to v1.Image) error {
	source, target, argv := b.registry.image("moving"), "moving", []string{verb}
	if verb == "switch" {
		target = "moved"
		argv = append(argv, "docker://"+b.registry.image(target))
	}
	// have makes a store with the old image and pushes the new one.
	have := func(argv ...string) error {
		if err := b.registry.push("moving", from); err != nil {
			return err
		}
		return errors.Join(b.quietly(ctx, argv...), b.registry.push(target, to))
	}
	kedge := func(backend []string) func(string) ([]string, error) {
		return func(dir string) ([]string, error) {
			return append([]string{b.kedge, "--sysroot", dir, "--progress-fd", progressFD}, argv...),
				errors.Join(os.Mkdir(dir, 0o755), have(b.install(dir, source, backend)...))
		}
	}
	return b.compare(ctx, name, 1, []program{
		{reference, func(dir string) ([]string, error) {
			return podmanPull(dir, b.registry.image(target)), have(podmanPull(dir, source)...)
		}},
		{"kedge " + verb, kedge(ostree)},
		{"kedge " + verb + ", composefs", kedge(composefs)},
	})
}

type member struct {
	name string
	body []byte
}

func layerWith(members []member) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, m := range members {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: m.name, Mode: 0o644, Size: int64(len(m.body))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(m.body); err != nil {
			return nil, err
		}
	}
	err := errors.Join(w.Close(), z.Close())
	return b.Bytes(), err
}

// percentLayer changes the last byte of every hundredth file of an image.
func percentLayer(img v1.Image) ([]byte, error) {
	r := mutate.Extract(img)
	defer r.Close()
	t := tar.NewReader(r)
	var members []member
	for n := 0; ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return layerWith(members)
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg || h.Size == 0 {
			continue
		}
		if n++; n%100 != 0 {
			continue
		}
		body, err := io.ReadAll(t)
		if err != nil {
			return nil, err
		}
		body[len(body)-1]++
		members = append(members, member{strings.TrimPrefix(h.Name, "/"), body})
	}
}
