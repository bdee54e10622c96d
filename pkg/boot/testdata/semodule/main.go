// Command semodule stands in for the real one in test images: where the image
// says that it can refresh a policy, it notes in /etc/selinux that it was asked to.
package main

import (
	"fmt"
	"os"
	"slices"
)

func main() {
	_, err := os.Stat("/usr/lib/semodule-refreshes")
	can := err == nil
	switch {
	case slices.Contains(os.Args, "--help") && can:
		fmt.Println("usage: semodule [-N] [--refresh]")
	case slices.Contains(os.Args, "--help"):
		fmt.Println("usage: semodule [-N]")
	case slices.Contains(os.Args, "--refresh") && can:
		if err := os.WriteFile("/etc/selinux/refreshed", []byte("yes"), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		os.Exit(1)
	}
}
