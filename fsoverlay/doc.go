// Package fsoverlay makes the root file system of a sandbox and everything that
// is mounted into it, as an ordinary user inside a user namespace.
//
// # The root
//
// A sandbox's root is a stack of read-only layer directories, an init layer (see
// below) and one writable directory. Three drivers build it, from best to worst:
//
//	native  the kernel's overlay with userxattr (Linux 5.11); mounted by init
//	fuse    fuse-overlayfs 1.10 or later; started by the monitor, inherited by init
//	copy    a plain tree made of the layers, reflinked where the file system can
//
// [Probe] tries each of them for real in the directory that will hold the
// writable layers, and says why one does not work and what would help; [Choose]
// takes the best. All three read layers in the overlay's own format: a character
// device 0:0 hides a name, the attribute user.overlay.opaque=y hides what is
// below a directory. A file system may refuse to keep these: another overlay takes
// no device 0:0, which is what a container's own root usually is. Layers unpacked
// there have files for marks, .wh.NAME and .wh..wh..opq. fuse and copy honour both
// forms, native its own only. No file of an image can have such a name; in a root
// directory given by the user (--rootfs) copy and fuse leave it out.
//
// [BuildInitLayer] makes one more lower directory between the image and the
// writable layer. It holds the mount points that the image lacks, so that
// neither they nor what is mounted on them ever show up in the writable layer.
//
// With a single mapped id no driver can keep other owners: the kernel answers
// chown(2) to an id that is not mapped with EINVAL before any file system is
// asked, so the override_stat attributes of fuse-overlayfs do not help there.
//
// # The plan
//
// [BuildPlan] turns what the user asked for into a [Plan]: a list of operations
// as plain data, which can be printed, compared in a test, and sent to init,
// which executes it in order with [Plan.Apply] and ends in pivot_root.
//
// Nothing of the image or of an old writable layer is trusted while that runs:
//   - a target is resolved inside the root with openat2(RESOLVE_IN_ROOT), or
//     component by component on kernels without it, and mounted on by descriptor,
//     so a link can neither lead out of the root nor be swapped in between;
//   - /proc, /sys and /dev must be real directories, and no user mount may land
//     on a procfs or sysfs, whatever links lead there;
//   - the devices and the /dev/null used for masking are the host's own, checked
//     by number;
//   - the sources of bind mounts are opened as detached trees before anything is
//     mounted, and get their read-only flag before they are attached.
//
// What the workload may do in a mount, [Mount].Allow, is a matter of the mount's flags
// as far as these go. For the rest [Landlock] makes rules in the finished tree, once for
// each run and before a program is in it; whoever executes one enters a domain of them.
//
// # Volumes
//
// [Volumes] is the store of named and anonymous volumes. An empty volume is
// filled from the image at its target by init, before it is mounted.
//
// # Limits
//
//   - 126 image layers (the kernel takes 500, one page of mount options holds
//     127 of them on kernels before 6.7, and one is the init layer)
//   - 256 user mounts in one sandbox
//   - 8192 Landlock rules: one for each file in the directories above a mount that has
//     any
//   - 40 symbolic links and a depth of 256 while a target is resolved
//   - removal and copying of trees hold at most 110 and 140 descriptors, whatever
//     the depth of the tree; a path of an image is at most 4095 bytes long
//   - Linux 5.2 at least (open_tree, move_mount); openat2 (5.6), mount_setattr
//     (5.12) and lowerdir+ (6.7) are used where they exist
package fsoverlay
