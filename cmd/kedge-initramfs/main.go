// Command kedge-initramfs mounts the composefs image that the kernel command line
// names (composefs=DIGEST) as the root. It runs once in the initramfs, from
// kedge-root-setup.service; internal/setuproot says how it works, and
// docs/composefs.md how it gets there.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/kedge-os/kedge/internal/setuproot"
	"github.com/kedge-os/kedge/pkg/fault"
)

func main() {
	var o setuproot.Options
	flag.StringVar(&o.Sysroot, "sysroot", "/sysroot", "`DIR` where the disk is mounted and the root goes")
	flag.StringVar(&o.Config, "config", setuproot.ConfigPath, "`FILE` with the image's configuration")
	flag.StringVar(&o.Cmdline, "cmdline", "", "kernel command `LINE` instead of the kernel's own")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(fault.Usage.ExitCode())
	}
	out, err := setuproot.Run(context.Background(), o)
	if err != nil {
		fmt.Fprint(os.Stderr, setuproot.Explain(err))
		os.Exit(fault.KindOf(err).ExitCode())
	}
	switch {
	case out.Plan == nil:
		fmt.Println("the kernel command line names no composefs image: nothing to do")
	case out.Already:
		fmt.Println("the root is", out.Plan.Digest, "already")
	case out.Sealed:
		fmt.Println("the root is", out.Plan.Digest, "with fs-verity")
	default:
		fmt.Println("the root is", out.Plan.Digest, "without fs-verity, as the kernel argument allows")
	}
}
