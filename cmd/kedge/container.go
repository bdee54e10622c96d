package main

import (
	"bufio"
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/builder"
	"github.com/kedge-os/kedge/pkg/fault"
)

type containerDigestOptions struct {
	backend, format string
	compare         bool
	options         builder.DigestOptions
}

func (o *containerDigestOptions) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "backend", Value: "composefs", Usage: "the digest that `BACKEND` gives the root: composefs or ostree", Destination: &o.backend},
		&cli.StringFlag{Name: "format", Value: "digest", Usage: "print the `FORMAT`: digest, or dump (composefs-dump(5))", Destination: &o.format},
		&cli.BoolFlag{Name: "compare", Usage: "compare two operands and name the first path and field that differ", Destination: &o.compare},
		&cli.BoolFlag{Name: "raw", Usage: "take the root as a container shows it, not as it is booted", Destination: &o.options.Raw},
		&cli.BoolFlag{Name: "keep-user-xattrs", Usage: "count user.* xattrs too", Destination: &o.options.KeepUser},
		&cli.BoolFlag{Name: "sha256", Usage: "use sha256 instead of sha512, which bootc uses", Destination: &o.options.SHA256},
	}
}

func cmdContainer(e *env) *cli.Command {
	o := &containerDigestOptions{}
	return &cli.Command{
		Name:        "container",
		Usage:       "look at images as their builder needs it",
		Description: "Needs no host that kedge keeps, and changes nothing.",
		UsageText:   "kedge container digest quay.io/example/os:1",
		Subcommands: []*cli.Command{{
			Name:      "digest",
			Usage:     "print the digest of the root of an image or a directory",
			ArgsUsage: "IMAGE|DIR [IMAGE|DIR]",
			Description: "The digest is what composefs= names on the kernel command line of a host that boots the\n" +
				"image. An image, the directory that it is unpacked in and a host's store give the same one.\n" +
				"A DIR begins with / or a dot. With --backend ostree it is the digest of the commit's files\n" +
				"that libostree calls ostree.composefs.digest.v0.\n\n" +
				"With --compare the exit status is 0 if both have the same digest and 4 if not.",
			UsageText: "kedge container digest --compare oci:build:latest /mnt/rootfs",
			Flags:     o.flags(),
			Action: func(c *cli.Context) error {
				want := 1
				if o.compare {
					want = 2
				}
				if c.NArg() != want {
					return fault.New(fault.Usage, "kedge container digest --help shows what it takes", "container digest: %d operands, want %d", c.NArg(), want)
				}
				return runContainerDigest(c.Context, e, o, c.Args().Slice())
			},
		}},
	}
}

func runContainerDigest(ctx context.Context, e *env, o *containerDigestOptions, what []string) error {
	compute := map[string]func(context.Context, string, builder.DigestOptions) (*builder.Root, error){
		"composefs": builder.Digest, "ostree": builder.OSTreeDigest,
	}[o.backend]
	if compute == nil {
		return fault.New(fault.Usage, "use composefs or ostree", "--backend %s: unknown backend", o.backend)
	}
	if o.format != "digest" && o.format != "dump" {
		return fault.New(fault.Usage, "use digest or dump", "--format %s: unknown format", o.format)
	}
	o.options.Sysroot, o.options.Logger = e.sysroot, e.log
	var roots []*builder.Root
	for _, w := range what {
		r, err := compute(ctx, w, o.options)
		if err != nil {
			return err
		}
		roots = append(roots, r)
	}
	switch {
	case o.compare:
		return compareRoots(e, o.backend, what, roots)
	case o.format == "dump":
		out := bufio.NewWriter(e.stdout)
		if err := roots[0].WriteDump(out); err != nil {
			return err
		}
		return out.Flush()
	case e.json:
		d := roots[0].Digest
		return e.printJSON(v1.ImageDigest{Backend: o.backend, Algorithm: d.Algorithm().String(), Digest: d.String()})
	}
	return e.printf("%s\n", roots[0].Digest)
}

func compareRoots(e *env, backend string, what []string, roots []*builder.Root) error {
	d, err := builder.Compare(roots[0], roots[1])
	if err != nil {
		return err
	}
	if e.json {
		err := e.printJSON(v1.DigestComparison{Backend: backend, A: roots[0].Digest.String(), B: roots[1].Digest.String(), First: d})
		if err != nil {
			return err
		}
	}
	if d == nil {
		if e.json {
			return nil
		}
		return e.printf("%s\n", roots[0].Digest)
	}
	at := d.Path + ": " + d.Field
	if d.A != "" || d.B != "" {
		at += fmt.Sprintf(": %s against %s", d.A, d.B)
	}
	return fault.New(fault.Conflict, "build both from the same files, times included", "%s and %s differ first at %s", what[0], what[1], at)
}
