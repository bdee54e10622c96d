// Command ocilayout packs a directory into an OCI image in an OCI layout,
// keeping owners, modes, times, hard links, devices and xattrs. It is what the
// lab's base image is written with: one process, no container engine.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

// labels collects repeated --label KEY=VALUE flags.
type labels map[string]string

func (l labels) String() string { return fmt.Sprint(map[string]string(l)) }

func (l labels) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("want KEY=VALUE")
	}
	l[k] = v
	return nil
}

type options struct {
	layout, root, tag, from, compression string
	layers                               int
	labels                               labels
}

func main() {
	o := options{labels: labels{}}
	flag.StringVar(&o.layout, "layout", "", "OCI layout `DIR`; made if it is not there")
	flag.StringVar(&o.root, "root", "", "`DIR` to pack")
	flag.StringVar(&o.tag, "tag", "latest", "`TAG` of the image in the layout")
	flag.StringVar(&o.from, "from", "", "`TAG` in the layout to add the layers to")
	flag.StringVar(&o.compression, "compression", "gzip", "gzip, zstd or none")
	flag.IntVar(&o.layers, "layers", 1, "split the files into `N` layers of like size")
	flag.Var(o.labels, "label", "`KEY=VALUE` for the image's configuration; repeatable")
	flag.Parse()
	if o.layout == "" || o.root == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "ocilayout:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	files, err := scan(o.root)
	if err != nil {
		return err
	}
	l, err := openLayout(o.layout)
	if err != nil {
		return err
	}
	img, err := l.image(o.from)
	if err != nil {
		return err
	}
	for _, part := range split(files, o.layers) {
		if err := img.addLayer(part, o.compression); err != nil {
			return err
		}
	}
	return img.write(o.tag, o.labels)
}
