// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares every structure and constant of the crate with the public C headers.
//!
//! The compile-time asserts of `wire_struct!` hold a structure to what was written beside it; this
//! test holds what was written to the headers of Debian's `libxen-dev` (4.17). One table names each
//! item of ours and the C expression that it has to equal. From it comes a C program that prints the
//! values of all expressions, one a line, and they are compared line by line.
//!
//! Without the headers or a C compiler nothing can be compared: the test says so and passes.

use std::path::Path;
use std::process::Command;

use guest_abi::io::{blkif, netif, xenbus, xs_wire};
use guest_abi::{
    Errno, console, console_io, cpuid, domctl, event_channel, grant_table, hvm, hypercall, memory, physdev, platform,
    pvh, ring, sched, shared_info, sysctl, vcpu, version,
};

/// A C expression and the value that ours has, as 64 bits.
struct Row {
    ours: &'static str,
    c: String,
    value: u64,
}

/// A constant's value as 64 bits, sign-extended as C does it.
trait Bits {
    fn bits(self) -> u64;
}

macro_rules! bits {
    ($($unsigned:ty),*; $($signed:ty),*) => {
        $(impl Bits for $unsigned { fn bits(self) -> u64 { u64::try_from(self).expect("fits") } })*
        $(impl Bits for $signed { fn bits(self) -> u64 { i64::from(self).cast_unsigned() } })*
    };
}
bits!(u8, u16, u32, u64, usize; i16, i32);

fn field_size<S, F>(_: impl Fn(&S) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! c_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $c:literal) => {
        $c
    };
}

macro_rules! structs {
    ($rows:ident $($module:ident :: $name:ident $c:literal: $($field:ident $(= $cf:literal)?),*;)*) => {$(
        $rows.push(Row {
            ours: concat!("size of ", stringify!($name)),
            c: format!("sizeof({})", $c),
            value: size_of::<$module::$name>().bits(),
        });
        $(
            let field = c_name!($field $($cf)?);
            $rows.push(Row {
                ours: concat!(stringify!($name), ".", stringify!($field)),
                c: format!("offsetof({}, {field})", $c),
                value: std::mem::offset_of!($module::$name, $field).bits(),
            });
            // Ours may be the part of a union that is of use.
            if field != "u" {
                $rows.push(Row {
                    ours: concat!("size of ", stringify!($name), ".", stringify!($field)),
                    c: format!("sizeof((({} *)0)->{field})", $c),
                    value: field_size(|s: &$module::$name| &s.$field).bits(),
                });
            }
        )*
    )*};
}

macro_rules! consts {
    ($rows:ident $($module:ident: $($name:ident $c:literal),*;)*) => {$($(
        $rows.push(Row { ours: stringify!($name), c: $c.to_string(), value: Bits::bits($module::$name) });
    )*)*};
}

macro_rules! errnos {
    ($rows:ident $($name:ident)*) => {$(
        $rows.push(Row { ours: stringify!($name), c: concat!("XEN_", stringify!($name)).to_string(), value: (Errno::$name as i32).bits() });
    )*};
}

const INCLUDES: &[&str] = &[
    "xen.h",
    "errno.h",
    "arch-x86/hvm/start_info.h",
    "arch-x86/cpuid.h",
    "elfnote.h",
    "event_channel.h",
    "grant_table.h",
    "memory.h",
    "vcpu.h",
    "sched.h",
    "hvm/hvm_op.h",
    "hvm/params.h",
    "version.h",
    "physdev.h",
    "platform.h",
    "io/console.h",
    "io/blkif.h",
    "io/netif.h",
    "io/ring.h",
    "io/xenbus.h",
    "io/xs_wire.h",
    "domctl.h",
    "sysctl.h",
    "io/xs_wire.h",
];

fn struct_rows(rows: &mut Vec<Row>) {
    structs! { rows
        domctl::CreateDomain "struct xen_domctl_createdomain": ssidref, handle, flags, iommu_opts, max_vcpus,
            max_evtchn_port, max_grant_frames, max_maptrack_frames, grant_opts, vmtrace_size, cpupool_id,
            emulation_flags = "arch.emulation_flags", misc_flags = "arch.misc_flags";
        domctl::GetDomainInfo "struct xen_domctl_getdomaininfo": domain, pad1, flags, tot_pages, max_pages,
            outstanding_pages, shr_pages, paged_pages, shared_info_frame, cpu_time, nr_online_vcpus, max_vcpu_id,
            ssidref, handle, cpupool, gpaddr_bits, pad2, emulation_flags = "arch_config.emulation_flags", misc_flags =
            "arch_config.misc_flags";
        domctl::CpuBitmap "struct xenctl_bitmap": bitmap, nr_bits;
        domctl::VcpuAffinity "struct xen_domctl_vcpuaffinity": vcpu, flags, cpumap_hard, cpumap_soft;
        domctl::MaxMem "struct xen_domctl_max_mem": max_memkb;
        domctl::VcpuContext "struct xen_domctl_vcpucontext": vcpu, ctxt;
        domctl::CpuUserRegs "struct cpu_user_regs": r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx,
            rsi, rdi, error_code, entry_vector, rip, cs, pad0 = "_pad0", saved_upcall_mask, pad1 = "_pad1", rflags,
            rsp, ss, pad2 = "_pad2", es, pad3 = "_pad3", ds, pad4 = "_pad4", fs, pad5 = "_pad5", gs, pad6 = "_pad6";
        domctl::GetVcpuInfo "struct xen_domctl_getvcpuinfo": vcpu, online, blocked, running, cpu_time, cpu;
        domctl::MaxVcpus "struct xen_domctl_max_vcpus": max;
        domctl::SchedulerOp "struct xen_domctl_scheduler_op": sched_id, cmd, weight = "u.credit.weight", cap =
            "u.credit.cap";
        sysctl::ReadConsole "struct xen_sysctl_readconsole": clear, incremental, pad0, pad1, index, buffer, count;
        sysctl::PhysInfo "struct xen_sysctl_physinfo": threads_per_core, cores_per_socket, nr_cpus, max_cpu_id,
            nr_nodes, max_node_id, cpu_khz, capabilities, arch_capabilities, pad, total_pages, free_pages,
            scrub_pages, outstanding_pages, max_mfn, hw_cap;
        sysctl::SchedId "struct xen_sysctl_sched_id": sched_id;
        sysctl::GetDomainInfoList "struct xen_sysctl_getdomaininfolist": first_domain, max_domains, buffer,
            num_domains;
        event_channel::AllocUnbound "struct evtchn_alloc_unbound": dom, remote_dom, port;
        event_channel::BindInterdomain "struct evtchn_bind_interdomain": remote_dom, remote_port, local_port;
        event_channel::BindVirq "struct evtchn_bind_virq": virq, vcpu, port;
        event_channel::BindPirq "struct evtchn_bind_pirq": pirq, flags, port;
        event_channel::BindIpi "struct evtchn_bind_ipi": vcpu, port;
        event_channel::Close "struct evtchn_close": port;
        event_channel::Send "struct evtchn_send": port;
        event_channel::Status "struct evtchn_status": dom, port, status, vcpu, first = "u", second =
            "u.interdomain.port";
        event_channel::BindVcpu "struct evtchn_bind_vcpu": port, vcpu;
        event_channel::Unmask "struct evtchn_unmask": port;
        event_channel::Reset "struct evtchn_reset": dom;
        event_channel::InitControl "struct evtchn_init_control": control_gfn, offset, vcpu, link_bits, pad = "_pad";
        event_channel::ExpandArray "struct evtchn_expand_array": array_gfn;
        event_channel::SetPriority "struct evtchn_set_priority": port, priority;
        grant_table::GrantEntryV1 "struct grant_entry_v1": flags, domid, frame;
        grant_table::MapGrantRef "struct gnttab_map_grant_ref": host_addr, flags, reference = "ref", dom, status,
            handle, dev_bus_addr;
        grant_table::UnmapGrantRef "struct gnttab_unmap_grant_ref": host_addr, dev_bus_addr, handle, status;
        grant_table::SetupTable "struct gnttab_setup_table": dom, nr_frames, status, frame_list;
        grant_table::CopyPtr "struct gnttab_copy_ptr": frame = "u", domid, offset;
        grant_table::GrantCopy "struct gnttab_copy": source, dest, len, flags, status;
        grant_table::QuerySize "struct gnttab_query_size": dom, nr_frames, max_nr_frames, status;
        grant_table::SetVersion "struct gnttab_set_version": version;
        grant_table::GetVersion "struct gnttab_get_version": dom, pad, version;
        grant_table::SwapGrantRef "struct gnttab_swap_grant_ref": ref_a, ref_b, status;
        hvm::HvmParam "struct xen_hvm_param": domid, pad, index, value;
        hvm::PagetableDying "struct xen_hvm_pagetable_dying": domid, pad, gpa;
        hvm::GetTime "struct xen_hvm_get_time": now;
        hvm::GetMemType "struct xen_hvm_get_mem_type": domid, mem_type, pad, pfn;
        hvm::EvtchnUpcallVector "struct xen_hvm_evtchn_upcall_vector": vcpu, vector;
        memory::MemoryReservation "struct xen_memory_reservation": extent_start, nr_extents, extent_order,
            mem_flags, domid;
        memory::MemoryDomain "struct xen_memory_domain": domid;
        memory::AddToPhysmap "struct xen_add_to_physmap": domid, size, space, idx, gpfn;
        memory::AddToPhysmapBatch "struct xen_add_to_physmap_batch": domid, space, size, foreign_domid = "u", idxs,
            gpfns, errs;
        memory::RemoveFromPhysmap "struct xen_remove_from_physmap": domid, gpfn;
        memory::MemoryMap "struct xen_memory_map": nr_entries, buffer;
        memory::ForeignMemoryMap "struct xen_foreign_memory_map": domid, map;
        memory::AcquireResource "struct xen_mem_acquire_resource": domid, kind = "type", id, nr_frames, pad, frame,
            frame_list;
        physdev::IrqStatusQuery "struct physdev_irq_status_query": irq, flags;
        physdev::Eoi "struct physdev_eoi": irq;
        physdev::MapPirq "struct physdev_map_pirq": domid, kind = "type", index, pirq, bus, devfn, entry_nr,
            table_base;
        physdev::UnmapPirq "struct physdev_unmap_pirq": domid, pirq;
        physdev::ManagePci "struct physdev_manage_pci": bus, devfn;
        physdev::SetupGsi "struct physdev_setup_gsi": gsi, triggering, polarity;
        physdev::GetFreePirq "struct physdev_get_free_pirq": kind = "type", pirq;
        physdev::PciMmcfgReserved "struct physdev_pci_mmcfg_reserved": address, segment, start_bus, end_bus, flags;
        physdev::PciDeviceAdd "struct physdev_pci_device_add": seg, bus, devfn, flags, physfn_bus = "physfn.bus",
            physfn_devfn = "physfn.devfn";
        physdev::PciDevice "struct physdev_pci_device": seg, bus, devfn;
        physdev::DbgpOp "struct physdev_dbgp_op": op, bus, pci = "u";
        platform::Settime32 "struct xenpf_settime32": secs, nsecs, system_time;
        platform::Settime64 "struct xenpf_settime64": secs, nsecs, mbz, system_time;
        platform::FirmwareInfo "struct xenpf_firmware_info": kind = "type", index, data = "u";
        platform::EnterAcpiSleep "struct xenpf_enter_acpi_sleep": val_a, val_b, sleep_state, flags;
        platform::PcpuInfo "struct xenpf_pcpuinfo": xen_cpuid, max_present, flags, apic_id, acpi_id;
        pvh::StartInfo "struct hvm_start_info": magic, version, flags, nr_modules, modlist_paddr, cmdline_paddr,
            rsdp_paddr, memmap_paddr, memmap_entries, reserved;
        pvh::ModlistEntry "struct hvm_modlist_entry": paddr, size, cmdline_paddr, reserved;
        pvh::MemmapEntry "struct hvm_memmap_table_entry": addr, size, kind = "type", reserved;
        sched::Shutdown "struct sched_shutdown": reason;
        sched::Poll "struct sched_poll": ports, nr_ports, timeout;
        sched::RemoteShutdown "struct sched_remote_shutdown": domain_id, reason;
        sched::Watchdog "struct sched_watchdog": id, timeout;
        shared_info::VcpuTimeInfo "struct vcpu_time_info": version, pad0, tsc_timestamp, system_time,
            tsc_to_system_mul, tsc_shift, flags, pad1;
        shared_info::RunstateInfo "struct vcpu_runstate_info": state, state_entry_time, time;
        vcpu::RegisterArea "struct vcpu_register_time_memory_area": addr;
        vcpu::SetPeriodicTimer "struct vcpu_set_periodic_timer": period_ns;
        vcpu::SetSingleshotTimer "struct vcpu_set_singleshot_timer": timeout_abs_ns, flags;
        vcpu::RegisterVcpuInfo "struct vcpu_register_vcpu_info": mfn, offset, rsvd;
        version::FeatureInfo "struct xen_feature_info": submap_idx, submap;
        blkif::Segment "struct blkif_request_segment": gref, first_sect, last_sect;
        blkif::RawRequest "struct blkif_request": operation, nr_segments, handle, id, sector_number, seg;
        blkif::RawDiscard "struct blkif_request_discard": operation, flag, handle, id, sector_number, nr_sectors;
        blkif::RawIndirect "struct blkif_request_indirect": operation, indirect_op, nr_segments, id, sector_number,
            handle, indirect_grefs;
        blkif::Response "struct blkif_response": id, operation, status;
        netif::TxRequest "struct netif_tx_request": gref, offset, flags, id, size;
        netif::TxResponse "struct netif_tx_response": id, status;
        netif::RxRequest "struct netif_rx_request": id, pad, gref;
        netif::RxResponse "struct netif_rx_response": id, offset, flags, status;
        netif::RawExtra "struct netif_extra_info": kind = "type", flags, data = "u";
        netif::CtrlRequest "struct xen_netif_ctrl_request": id, kind = "type", data;
        netif::CtrlResponse "struct xen_netif_ctrl_response": id, kind = "type", status, data;
        netif::StaticGrant "struct xen_netif_gref": gref = "ref", flags, status;
        xs_wire::Head "struct xsd_sockmsg": kind = "type", req_id, tx_id, len;
    }
}

fn const_rows(rows: &mut Vec<Row>) {
    consts! { rows
        console:
            CONSOLE_IN "offsetof(struct xencons_interface, in)",
            CONSOLE_IN_SIZE "sizeof(((struct xencons_interface *)0)->in)",
            CONSOLE_OUT "offsetof(struct xencons_interface, out)",
            CONSOLE_OUT_SIZE "sizeof(((struct xencons_interface *)0)->out)",
            CONSOLE_IN_CONS "offsetof(struct xencons_interface, in_cons)",
            CONSOLE_IN_PROD "offsetof(struct xencons_interface, in_prod)",
            CONSOLE_OUT_CONS "offsetof(struct xencons_interface, out_cons)",
            CONSOLE_OUT_PROD "offsetof(struct xencons_interface, out_prod)",
            CONSOLE_SIZE "sizeof(struct xencons_interface)";
        console_io:
            CONSOLEIO_WRITE "CONSOLEIO_write", CONSOLEIO_READ "CONSOLEIO_read", DEBUG_PORT "XEN_HVM_DEBUGCONS_IOPORT";
        cpuid:
            FIRST_LEAF "XEN_CPUID_FIRST_LEAF", MAX_LEAF "XEN_CPUID_LEAF(XEN_CPUID_MAX_NUM_LEAVES)",
            SIGNATURE_EBX "XEN_CPUID_SIGNATURE_EBX", SIGNATURE_ECX "XEN_CPUID_SIGNATURE_ECX",
            SIGNATURE_EDX "XEN_CPUID_SIGNATURE_EDX", LEAF_VERSION "XEN_CPUID_LEAF(1)",
            LEAF_HYPERCALL_PAGE "XEN_CPUID_LEAF(2)", LEAF_TIME "XEN_CPUID_LEAF(3)", LEAF_HVM "XEN_CPUID_LEAF(4)",
            LEAF_WIDTH "XEN_CPUID_LEAF(5)", HVM_APIC_ACCESS_VIRT "XEN_HVM_CPUID_APIC_ACCESS_VIRT",
            HVM_X2APIC_VIRT "XEN_HVM_CPUID_X2APIC_VIRT", HVM_IOMMU_MAPPINGS "XEN_HVM_CPUID_IOMMU_MAPPINGS",
            HVM_VCPU_ID_PRESENT "XEN_HVM_CPUID_VCPU_ID_PRESENT", HVM_DOMID_PRESENT "XEN_HVM_CPUID_DOMID_PRESENT",
            HVM_EXT_DEST_ID "XEN_HVM_CPUID_EXT_DEST_ID", HVM_UPCALL_VECTOR "XEN_HVM_CPUID_UPCALL_VECTOR";
        domctl:
            XEN_DOMCTL_INTERFACE_VERSION "XEN_DOMCTL_INTERFACE_VERSION", DOMCTL_SIZE "sizeof(struct xen_domctl)",
            DOMCTL_ARG "offsetof(struct xen_domctl, u)", XEN_DOMCTL_CREATEDOMAIN "XEN_DOMCTL_createdomain",
            XEN_DOMCTL_DESTROYDOMAIN "XEN_DOMCTL_destroydomain", XEN_DOMCTL_PAUSEDOMAIN "XEN_DOMCTL_pausedomain",
            XEN_DOMCTL_UNPAUSEDOMAIN "XEN_DOMCTL_unpausedomain",
            XEN_DOMCTL_GETDOMAININFO "XEN_DOMCTL_getdomaininfo",
            XEN_DOMCTL_SETVCPUAFFINITY "XEN_DOMCTL_setvcpuaffinity", XEN_DOMCTL_MAX_MEM "XEN_DOMCTL_max_mem",
            XEN_DOMCTL_SETVCPUCONTEXT "XEN_DOMCTL_setvcpucontext",
            XEN_DOMCTL_GETVCPUCONTEXT "XEN_DOMCTL_getvcpucontext", XEN_DOMCTL_GETVCPUINFO "XEN_DOMCTL_getvcpuinfo",
            XEN_DOMCTL_MAX_VCPUS "XEN_DOMCTL_max_vcpus", XEN_DOMCTL_SCHEDULER_OP "XEN_DOMCTL_scheduler_op",
            XEN_DOMCTL_CDF_HVM "XEN_DOMCTL_CDF_hvm", XEN_DOMCTL_CDF_HAP "XEN_DOMCTL_CDF_hap",
            XEN_X86_EMU_LAPIC "XEN_X86_EMU_LAPIC", XEN_DOMINF_DYING "XEN_DOMINF_dying",
            XEN_DOMINF_HVM_GUEST "XEN_DOMINF_hvm_guest", XEN_DOMINF_SHUTDOWN "XEN_DOMINF_shutdown",
            XEN_DOMINF_PAUSED "XEN_DOMINF_paused", XEN_DOMINF_BLOCKED "XEN_DOMINF_blocked",
            XEN_DOMINF_RUNNING "XEN_DOMINF_running", XEN_DOMINF_HAP "XEN_DOMINF_hap",
            XEN_DOMINF_SHUTDOWNMASK "XEN_DOMINF_shutdownmask", XEN_DOMINF_SHUTDOWNSHIFT "XEN_DOMINF_shutdownshift",
            XEN_VCPUAFFINITY_HARD "XEN_VCPUAFFINITY_HARD", XEN_VCPUAFFINITY_SOFT "XEN_VCPUAFFINITY_SOFT",
            VCPU_CONTEXT_SIZE "sizeof(struct vcpu_guest_context)",
            VCPU_CONTEXT_FLAGS "offsetof(struct vcpu_guest_context, flags)",
            VCPU_CONTEXT_USER_REGS "offsetof(struct vcpu_guest_context, user_regs)",
            VCPU_CONTEXT_CTRLREG "offsetof(struct vcpu_guest_context, ctrlreg)",
            VCPU_CONTEXT_FS_BASE "offsetof(struct vcpu_guest_context, fs_base)", VGCF_ONLINE "VGCF_online",
            XEN_SCHEDULER_CREDIT "XEN_SCHEDULER_CREDIT", XEN_DOMCTL_SCHEDOP_PUTINFO "XEN_DOMCTL_SCHEDOP_putinfo",
            XEN_DOMCTL_SCHEDOP_GETINFO "XEN_DOMCTL_SCHEDOP_getinfo";
        event_channel:
            EVTCHNOP_BIND_INTERDOMAIN "EVTCHNOP_bind_interdomain", EVTCHNOP_BIND_VIRQ "EVTCHNOP_bind_virq",
            EVTCHNOP_BIND_PIRQ "EVTCHNOP_bind_pirq", EVTCHNOP_CLOSE "EVTCHNOP_close", EVTCHNOP_SEND "EVTCHNOP_send",
            EVTCHNOP_STATUS "EVTCHNOP_status", EVTCHNOP_ALLOC_UNBOUND "EVTCHNOP_alloc_unbound",
            EVTCHNOP_BIND_IPI "EVTCHNOP_bind_ipi", EVTCHNOP_BIND_VCPU "EVTCHNOP_bind_vcpu",
            EVTCHNOP_UNMASK "EVTCHNOP_unmask", EVTCHNOP_RESET "EVTCHNOP_reset",
            EVTCHNOP_INIT_CONTROL "EVTCHNOP_init_control", EVTCHNOP_EXPAND_ARRAY "EVTCHNOP_expand_array",
            EVTCHNOP_SET_PRIORITY "EVTCHNOP_set_priority", EVTCHNSTAT_CLOSED "EVTCHNSTAT_closed",
            EVTCHNSTAT_UNBOUND "EVTCHNSTAT_unbound", EVTCHNSTAT_INTERDOMAIN "EVTCHNSTAT_interdomain",
            EVTCHNSTAT_PIRQ "EVTCHNSTAT_pirq", EVTCHNSTAT_VIRQ "EVTCHNSTAT_virq", EVTCHNSTAT_IPI "EVTCHNSTAT_ipi",
            TWO_LEVEL_PORTS "EVTCHN_2L_NR_CHANNELS", FIFO_PORTS "EVTCHN_FIFO_NR_CHANNELS",
            FIFO_LINK_BITS "EVTCHN_FIFO_LINK_BITS", FIFO_LINK_MASK "EVTCHN_FIFO_LINK_MASK",
            FIFO_PENDING "1u << EVTCHN_FIFO_PENDING", FIFO_MASKED "1u << EVTCHN_FIFO_MASKED",
            FIFO_LINKED "1u << EVTCHN_FIFO_LINKED", FIFO_BUSY "1u << EVTCHN_FIFO_BUSY",
            FIFO_PRIORITY_MAX "EVTCHN_FIFO_PRIORITY_MAX", FIFO_PRIORITY_DEFAULT "EVTCHN_FIFO_PRIORITY_DEFAULT",
            FIFO_PRIORITY_MIN "EVTCHN_FIFO_PRIORITY_MIN", FIFO_QUEUES "EVTCHN_FIFO_MAX_QUEUES",
            FIFO_WORDS_PER_PAGE "4096 / sizeof(event_word_t)",
            FIFO_CONTROL_READY "offsetof(struct evtchn_fifo_control_block, ready)",
            FIFO_CONTROL_HEAD "offsetof(struct evtchn_fifo_control_block, head)",
            FIFO_CONTROL_SIZE "sizeof(struct evtchn_fifo_control_block)", VIRQ_TIMER "VIRQ_TIMER",
            VIRQ_DEBUG "VIRQ_DEBUG", VIRQ_CONSOLE "VIRQ_CONSOLE", VIRQ_DOM_EXC "VIRQ_DOM_EXC", VIRQ_TBUF "VIRQ_TBUF",
            VIRQ_DEBUGGER "VIRQ_DEBUGGER", VIRQ_XENOPROF "VIRQ_XENOPROF", VIRQ_CON_RING "VIRQ_CON_RING",
            VIRQ_PCPU_STATE "VIRQ_PCPU_STATE", VIRQ_MEM_EVENT "VIRQ_MEM_EVENT", VIRQ_ARGO "VIRQ_ARGO",
            VIRQ_ENOMEM "VIRQ_ENOMEM", VIRQ_XENPMU "VIRQ_XENPMU", VIRQ_ARCH_0 "VIRQ_ARCH_0", NR_VIRQS "NR_VIRQS";
        grant_table:
            GRANT_ENTRY_SIZE "sizeof(struct grant_entry_v1)",
            GRANT_ENTRIES_PER_FRAME "4096 / sizeof(struct grant_entry_v1)",
            GRANT_RESERVED_ENTRIES "GNTTAB_NR_RESERVED_ENTRIES", GRANT_RESERVED_CONSOLE "GNTTAB_RESERVED_CONSOLE",
            GRANT_RESERVED_XENSTORE "GNTTAB_RESERVED_XENSTORE", GTF_INVALID "GTF_invalid",
            GTF_PERMIT_ACCESS "GTF_permit_access", GTF_ACCEPT_TRANSFER "GTF_accept_transfer",
            GTF_TRANSITIVE "GTF_transitive", GTF_TYPE_MASK "GTF_type_mask", GTF_READONLY "GTF_readonly",
            GTF_READING "GTF_reading", GTF_WRITING "GTF_writing", GTF_PWT "GTF_PWT", GTF_PCD "GTF_PCD",
            GTF_PAT "GTF_PAT", GTF_SUB_PAGE "GTF_sub_page", GNTTABOP_MAP_GRANT_REF "GNTTABOP_map_grant_ref",
            GNTTABOP_UNMAP_GRANT_REF "GNTTABOP_unmap_grant_ref", GNTTABOP_SETUP_TABLE "GNTTABOP_setup_table",
            GNTTABOP_DUMP_TABLE "GNTTABOP_dump_table", GNTTABOP_TRANSFER "GNTTABOP_transfer",
            GNTTABOP_COPY "GNTTABOP_copy", GNTTABOP_QUERY_SIZE "GNTTABOP_query_size",
            GNTTABOP_UNMAP_AND_REPLACE "GNTTABOP_unmap_and_replace", GNTTABOP_SET_VERSION "GNTTABOP_set_version",
            GNTTABOP_GET_STATUS_FRAMES "GNTTABOP_get_status_frames", GNTTABOP_GET_VERSION "GNTTABOP_get_version",
            GNTTABOP_SWAP_GRANT_REF "GNTTABOP_swap_grant_ref", GNTTABOP_CACHE_FLUSH "GNTTABOP_cache_flush",
            GNTMAP_DEVICE_MAP "GNTMAP_device_map", GNTMAP_HOST_MAP "GNTMAP_host_map",
            GNTMAP_READONLY "GNTMAP_readonly", GNTMAP_APPLICATION_MAP "GNTMAP_application_map",
            GNTMAP_CONTAINS_PTE "GNTMAP_contains_pte", GNTCOPY_SOURCE_GREF "GNTCOPY_source_gref",
            GNTCOPY_DEST_GREF "GNTCOPY_dest_gref", GNTST_OKAY "GNTST_okay", GNTST_GENERAL_ERROR "GNTST_general_error",
            GNTST_BAD_DOMAIN "GNTST_bad_domain", GNTST_BAD_GNTREF "GNTST_bad_gntref",
            GNTST_BAD_HANDLE "GNTST_bad_handle", GNTST_BAD_VIRT_ADDR "GNTST_bad_virt_addr",
            GNTST_BAD_DEV_ADDR "GNTST_bad_dev_addr", GNTST_NO_DEVICE_SPACE "GNTST_no_device_space",
            GNTST_PERMISSION_DENIED "GNTST_permission_denied", GNTST_BAD_PAGE "GNTST_bad_page",
            GNTST_BAD_COPY_ARG "GNTST_bad_copy_arg", GNTST_ADDRESS_TOO_BIG "GNTST_address_too_big",
            GNTST_EAGAIN "GNTST_eagain", GNTST_NO_SPACE "GNTST_no_space";
        hvm:
            HVMOP_SET_PARAM "HVMOP_set_param", HVMOP_GET_PARAM "HVMOP_get_param", HVMOP_FLUSH_TLBS "HVMOP_flush_tlbs",
            HVMOP_PAGETABLE_DYING "HVMOP_pagetable_dying", HVMOP_GET_TIME "HVMOP_get_time",
            HVMOP_XENTRACE "HVMOP_xentrace", HVMOP_GET_MEM_TYPE "HVMOP_get_mem_type",
            HVMOP_SET_EVTCHN_UPCALL_VECTOR "HVMOP_set_evtchn_upcall_vector",
            HVMOP_GUEST_REQUEST_VM_EVENT "HVMOP_guest_request_vm_event", HVMOP_ALTP2M "HVMOP_altp2m",
            HVM_PARAM_CALLBACK_IRQ "HVM_PARAM_CALLBACK_IRQ", HVM_PARAM_STORE_PFN "HVM_PARAM_STORE_PFN",
            HVM_PARAM_STORE_EVTCHN "HVM_PARAM_STORE_EVTCHN", HVM_PARAM_IOREQ_PFN "HVM_PARAM_IOREQ_PFN",
            HVM_PARAM_BUFIOREQ_PFN "HVM_PARAM_BUFIOREQ_PFN", HVM_PARAM_TIMER_MODE "HVM_PARAM_TIMER_MODE",
            HVM_PARAM_HPET_ENABLED "HVM_PARAM_HPET_ENABLED", HVM_PARAM_IDENT_PT "HVM_PARAM_IDENT_PT",
            HVM_PARAM_ACPI_S_STATE "HVM_PARAM_ACPI_S_STATE", HVM_PARAM_VPT_ALIGN "HVM_PARAM_VPT_ALIGN",
            HVM_PARAM_CONSOLE_PFN "HVM_PARAM_CONSOLE_PFN", HVM_PARAM_CONSOLE_EVTCHN "HVM_PARAM_CONSOLE_EVTCHN",
            HVM_PARAM_ACPI_IOPORTS_LOCATION "HVM_PARAM_ACPI_IOPORTS_LOCATION",
            HVM_PARAM_PAGING_RING_PFN "HVM_PARAM_PAGING_RING_PFN",
            HVM_PARAM_MONITOR_RING_PFN "HVM_PARAM_MONITOR_RING_PFN",
            HVM_PARAM_SHARING_RING_PFN "HVM_PARAM_SHARING_RING_PFN",
            HVM_PARAM_TRIPLE_FAULT_REASON "HVM_PARAM_TRIPLE_FAULT_REASON",
            HVM_PARAM_VM_GENERATION_ID_ADDR "HVM_PARAM_VM_GENERATION_ID_ADDR",
            HVM_PARAM_X87_FIP_WIDTH "HVM_PARAM_X87_FIP_WIDTH", HVM_NR_PARAMS "HVM_NR_PARAMS",
            HVM_PARAM_CALLBACK_IRQ_TYPE_MASK "HVM_PARAM_CALLBACK_IRQ_TYPE_MASK",
            HVM_PARAM_CALLBACK_TYPE_GSI "HVM_PARAM_CALLBACK_TYPE_GSI",
            HVM_PARAM_CALLBACK_TYPE_PCI_INTX "HVM_PARAM_CALLBACK_TYPE_PCI_INTX",
            HVM_PARAM_CALLBACK_TYPE_VECTOR "HVM_PARAM_CALLBACK_TYPE_VECTOR", HVMMEM_RAM_RW "HVMMEM_ram_rw",
            HVMMEM_RAM_RO "HVMMEM_ram_ro", HVMMEM_MMIO_DM "HVMMEM_mmio_dm";
        hypercall:
            HYPERVISOR_PLATFORM_OP "__HYPERVISOR_platform_op", HYPERVISOR_MEMORY_OP "__HYPERVISOR_memory_op",
            HYPERVISOR_MULTICALL "__HYPERVISOR_multicall", HYPERVISOR_SET_TIMER_OP "__HYPERVISOR_set_timer_op",
            HYPERVISOR_XEN_VERSION "__HYPERVISOR_xen_version", HYPERVISOR_CONSOLE_IO "__HYPERVISOR_console_io",
            HYPERVISOR_GRANT_TABLE_OP "__HYPERVISOR_grant_table_op", HYPERVISOR_VM_ASSIST "__HYPERVISOR_vm_assist",
            HYPERVISOR_VCPU_OP "__HYPERVISOR_vcpu_op", HYPERVISOR_XSM_OP "__HYPERVISOR_xsm_op",
            HYPERVISOR_NMI_OP "__HYPERVISOR_nmi_op", HYPERVISOR_SCHED_OP "__HYPERVISOR_sched_op",
            HYPERVISOR_EVENT_CHANNEL_OP "__HYPERVISOR_event_channel_op",
            HYPERVISOR_PHYSDEV_OP "__HYPERVISOR_physdev_op", HYPERVISOR_HVM_OP "__HYPERVISOR_hvm_op",
            HYPERVISOR_SYSCTL "__HYPERVISOR_sysctl", HYPERVISOR_DOMCTL "__HYPERVISOR_domctl",
            HYPERVISOR_KEXEC_OP "__HYPERVISOR_kexec_op", HYPERVISOR_ARGO_OP "__HYPERVISOR_argo_op",
            HYPERVISOR_XENPMU_OP "__HYPERVISOR_xenpmu_op", HYPERVISOR_DM_OP "__HYPERVISOR_dm_op",
            HYPERVISOR_HYPFS_OP "__HYPERVISOR_hypfs_op", HYPERVISOR_MCA "__HYPERVISOR_arch_0",
            HYPERVISOR_ISTHMUS "__HYPERVISOR_arch_7";
        memory:
            XENMEM_INCREASE_RESERVATION "XENMEM_increase_reservation",
            XENMEM_DECREASE_RESERVATION "XENMEM_decrease_reservation",
            XENMEM_MAXIMUM_RAM_PAGE "XENMEM_maximum_ram_page", XENMEM_CURRENT_RESERVATION "XENMEM_current_reservation",
            XENMEM_MAXIMUM_RESERVATION "XENMEM_maximum_reservation", XENMEM_POPULATE_PHYSMAP "XENMEM_populate_physmap",
            XENMEM_ADD_TO_PHYSMAP "XENMEM_add_to_physmap", XENMEM_MEMORY_MAP "XENMEM_memory_map",
            XENMEM_MACHINE_MEMORY_MAP "XENMEM_machine_memory_map", XENMEM_EXCHANGE "XENMEM_exchange",
            XENMEM_SET_MEMORY_MAP "XENMEM_set_memory_map", XENMEM_MAXIMUM_GPFN "XENMEM_maximum_gpfn",
            XENMEM_REMOVE_FROM_PHYSMAP "XENMEM_remove_from_physmap",
            XENMEM_ADD_TO_PHYSMAP_BATCH "XENMEM_add_to_physmap_batch", XENMEM_CLAIM_PAGES "XENMEM_claim_pages",
            XENMEM_RESERVED_DEVICE_MEMORY_MAP "XENMEM_reserved_device_memory_map",
            XENMEM_ACQUIRE_RESOURCE "XENMEM_acquire_resource", XENMAPSPACE_SHARED_INFO "XENMAPSPACE_shared_info",
            XENMAPSPACE_GRANT_TABLE "XENMAPSPACE_grant_table", XENMAPSPACE_GMFN "XENMAPSPACE_gmfn",
            XENMAPSPACE_GMFN_RANGE "XENMAPSPACE_gmfn_range", XENMAPSPACE_GMFN_FOREIGN "XENMAPSPACE_gmfn_foreign",
            XENMAPSPACE_DEV_MMIO "XENMAPSPACE_dev_mmio", XENMAPIDX_GRANT_TABLE_STATUS "XENMAPIDX_grant_table_status",
            XENMEM_RESOURCE_IOREQ_SERVER "XENMEM_resource_ioreq_server",
            XENMEM_RESOURCE_GRANT_TABLE "XENMEM_resource_grant_table",
            XENMEM_RESOURCE_VMTRACE_BUF "XENMEM_resource_vmtrace_buf",
            XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED "XENMEM_resource_grant_table_id_shared",
            XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS "XENMEM_resource_grant_table_id_status",
            XENMEMF_POPULATE_ON_DEMAND "XENMEMF_populate_on_demand",
            XENMEMF_EXACT_NODE_REQUEST "XENMEMF_exact_node_request", XENMEMF_VNODE "XENMEMF_vnode";
        physdev:
            PHYSDEVOP_IRQ_STATUS_QUERY "PHYSDEVOP_irq_status_query", PHYSDEVOP_EOI "PHYSDEVOP_eoi",
            PHYSDEVOP_MAP_PIRQ "PHYSDEVOP_map_pirq", PHYSDEVOP_UNMAP_PIRQ "PHYSDEVOP_unmap_pirq",
            PHYSDEVOP_MANAGE_PCI_ADD "PHYSDEVOP_manage_pci_add",
            PHYSDEVOP_MANAGE_PCI_REMOVE "PHYSDEVOP_manage_pci_remove", PHYSDEVOP_RESTORE_MSI "PHYSDEVOP_restore_msi",
            PHYSDEVOP_MANAGE_PCI_ADD_EXT "PHYSDEVOP_manage_pci_add_ext", PHYSDEVOP_SETUP_GSI "PHYSDEVOP_setup_gsi",
            PHYSDEVOP_GET_FREE_PIRQ "PHYSDEVOP_get_free_pirq",
            PHYSDEVOP_PCI_MMCFG_RESERVED "PHYSDEVOP_pci_mmcfg_reserved",
            PHYSDEVOP_PCI_DEVICE_ADD "PHYSDEVOP_pci_device_add",
            PHYSDEVOP_PCI_DEVICE_REMOVE "PHYSDEVOP_pci_device_remove",
            PHYSDEVOP_RESTORE_MSI_EXT "PHYSDEVOP_restore_msi_ext", PHYSDEVOP_DBGP_OP "PHYSDEVOP_dbgp_op",
            PHYSDEVOP_PREPARE_MSIX "PHYSDEVOP_prepare_msix", PHYSDEVOP_RELEASE_MSIX "PHYSDEVOP_release_msix",
            MAP_PIRQ_TYPE_MSI "MAP_PIRQ_TYPE_MSI", MAP_PIRQ_TYPE_GSI "MAP_PIRQ_TYPE_GSI",
            MAP_PIRQ_TYPE_UNKNOWN "MAP_PIRQ_TYPE_UNKNOWN", MAP_PIRQ_TYPE_MSI_SEG "MAP_PIRQ_TYPE_MSI_SEG",
            MAP_PIRQ_TYPE_MULTI_MSI "MAP_PIRQ_TYPE_MULTI_MSI";
        platform:
            XENPF_INTERFACE_VERSION "XENPF_INTERFACE_VERSION", PLATFORM_OP_SIZE "sizeof(struct xen_platform_op)",
            PLATFORM_OP_ARG "offsetof(struct xen_platform_op, u)", XENPF_SETTIME32 "XENPF_settime32",
            XENPF_GET_CPU_VERSION "XENPF_get_cpu_version", XENPF_EFI_RUNTIME_CALL "XENPF_efi_runtime_call",
            XENPF_FIRMWARE_INFO "XENPF_firmware_info", XENPF_ENTER_ACPI_SLEEP "XENPF_enter_acpi_sleep",
            XENPF_SET_PROCESSOR_PMINFO "XENPF_set_processor_pminfo", XENPF_GET_CPUINFO "XENPF_get_cpuinfo",
            XENPF_CPU_ONLINE "XENPF_cpu_online", XENPF_CPU_OFFLINE "XENPF_cpu_offline",
            XENPF_RESOURCE_OP "XENPF_resource_op", XENPF_SETTIME64 "XENPF_settime64",
            XENPF_GET_SYMBOL "XENPF_get_symbol", XEN_FW_DISK_INFO "XEN_FW_DISK_INFO",
            XEN_FW_DISK_MBR_SIGNATURE "XEN_FW_DISK_MBR_SIGNATURE", XEN_FW_VBEDDC_INFO "XEN_FW_VBEDDC_INFO",
            XEN_FW_EFI_INFO "XEN_FW_EFI_INFO", XEN_FW_KBD_SHIFT_FLAGS "XEN_FW_KBD_SHIFT_FLAGS";
        pvh:
            START_MAGIC "XEN_HVM_START_MAGIC_VALUE", MEMMAP_RAM "XEN_HVM_MEMMAP_TYPE_RAM",
            MEMMAP_RESERVED "XEN_HVM_MEMMAP_TYPE_RESERVED", MEMMAP_ACPI "XEN_HVM_MEMMAP_TYPE_ACPI",
            MEMMAP_NVS "XEN_HVM_MEMMAP_TYPE_NVS", MEMMAP_UNUSABLE "XEN_HVM_MEMMAP_TYPE_UNUSABLE",
            MEMMAP_DISABLED "XEN_HVM_MEMMAP_TYPE_DISABLED", MEMMAP_PMEM "XEN_HVM_MEMMAP_TYPE_PMEM",
            SIF_PRIVILEGED "SIF_PRIVILEGED", SIF_INITDOMAIN "SIF_INITDOMAIN", SIF_MULTIBOOT_MOD "SIF_MULTIBOOT_MOD",
            SIF_MOD_START_PFN "SIF_MOD_START_PFN", SIF_VIRT_P2M_4TOOLS "SIF_VIRT_P2M_4TOOLS",
            SIF_PM_MASK "SIF_PM_MASK", ELFNOTE_INFO "XEN_ELFNOTE_INFO", ELFNOTE_ENTRY "XEN_ELFNOTE_ENTRY",
            ELFNOTE_HYPERCALL_PAGE "XEN_ELFNOTE_HYPERCALL_PAGE", ELFNOTE_VIRT_BASE "XEN_ELFNOTE_VIRT_BASE",
            ELFNOTE_PADDR_OFFSET "XEN_ELFNOTE_PADDR_OFFSET", ELFNOTE_XEN_VERSION "XEN_ELFNOTE_XEN_VERSION",
            ELFNOTE_GUEST_OS "XEN_ELFNOTE_GUEST_OS", ELFNOTE_GUEST_VERSION "XEN_ELFNOTE_GUEST_VERSION",
            ELFNOTE_LOADER "XEN_ELFNOTE_LOADER", ELFNOTE_PAE_MODE "XEN_ELFNOTE_PAE_MODE",
            ELFNOTE_FEATURES "XEN_ELFNOTE_FEATURES", ELFNOTE_BSD_SYMTAB "XEN_ELFNOTE_BSD_SYMTAB",
            ELFNOTE_HV_START_LOW "XEN_ELFNOTE_HV_START_LOW", ELFNOTE_L1_MFN_VALID "XEN_ELFNOTE_L1_MFN_VALID",
            ELFNOTE_SUSPEND_CANCEL "XEN_ELFNOTE_SUSPEND_CANCEL", ELFNOTE_INIT_P2M "XEN_ELFNOTE_INIT_P2M",
            ELFNOTE_MOD_START_PFN "XEN_ELFNOTE_MOD_START_PFN",
            ELFNOTE_SUPPORTED_FEATURES "XEN_ELFNOTE_SUPPORTED_FEATURES",
            ELFNOTE_PHYS32_ENTRY "XEN_ELFNOTE_PHYS32_ENTRY";
        sched:
            SCHEDOP_YIELD "SCHEDOP_yield", SCHEDOP_BLOCK "SCHEDOP_block", SCHEDOP_SHUTDOWN "SCHEDOP_shutdown",
            SCHEDOP_POLL "SCHEDOP_poll", SCHEDOP_REMOTE_SHUTDOWN "SCHEDOP_remote_shutdown",
            SCHEDOP_SHUTDOWN_CODE "SCHEDOP_shutdown_code", SCHEDOP_WATCHDOG "SCHEDOP_watchdog",
            SCHEDOP_PIN_OVERRIDE "SCHEDOP_pin_override", SHUTDOWN_POWEROFF "SHUTDOWN_poweroff",
            SHUTDOWN_REBOOT "SHUTDOWN_reboot", SHUTDOWN_SUSPEND "SHUTDOWN_suspend", SHUTDOWN_CRASH "SHUTDOWN_crash",
            SHUTDOWN_WATCHDOG "SHUTDOWN_watchdog", SHUTDOWN_SOFT_RESET "SHUTDOWN_soft_reset";
        shared_info:
            SHARED_INFO_SIZE "sizeof(struct shared_info)", LEGACY_MAX_VCPUS "XEN_LEGACY_MAX_VCPUS",
            SHARED_VCPU_INFO "offsetof(struct shared_info, vcpu_info)",
            SHARED_EVTCHN_PENDING "offsetof(struct shared_info, evtchn_pending)",
            SHARED_EVTCHN_MASK "offsetof(struct shared_info, evtchn_mask)",
            SHARED_WC_VERSION "offsetof(struct shared_info, wc_version)",
            SHARED_WC_SEC "offsetof(struct shared_info, wc_sec)",
            SHARED_WC_NSEC "offsetof(struct shared_info, wc_nsec)",
            SHARED_WC_SEC_HI "offsetof(struct shared_info, wc_sec_hi)",
            SHARED_ARCH "offsetof(struct shared_info, arch)", VCPU_INFO_SIZE "sizeof(struct vcpu_info)",
            VCPU_UPCALL_PENDING "offsetof(struct vcpu_info, evtchn_upcall_pending)",
            VCPU_UPCALL_MASK "offsetof(struct vcpu_info, evtchn_upcall_mask)",
            VCPU_PENDING_SEL "offsetof(struct vcpu_info, evtchn_pending_sel)",
            VCPU_ARCH "offsetof(struct vcpu_info, arch)", VCPU_TIME "offsetof(struct vcpu_info, time)",
            PVCLOCK_TSC_STABLE "XEN_PVCLOCK_TSC_STABLE_BIT", PVCLOCK_GUEST_STOPPED "XEN_PVCLOCK_GUEST_STOPPED",
            RUNSTATE_UPDATE "XEN_RUNSTATE_UPDATE", RUNSTATE_RUNNING "RUNSTATE_running",
            RUNSTATE_RUNNABLE "RUNSTATE_runnable", RUNSTATE_BLOCKED "RUNSTATE_blocked",
            RUNSTATE_OFFLINE "RUNSTATE_offline";
        sysctl:
            XEN_SYSCTL_INTERFACE_VERSION "XEN_SYSCTL_INTERFACE_VERSION", SYSCTL_SIZE "sizeof(struct xen_sysctl)",
            SYSCTL_ARG "offsetof(struct xen_sysctl, u)", XEN_SYSCTL_READCONSOLE "XEN_SYSCTL_readconsole",
            XEN_SYSCTL_PHYSINFO "XEN_SYSCTL_physinfo", XEN_SYSCTL_SCHED_ID "XEN_SYSCTL_sched_id",
            XEN_SYSCTL_GETDOMAININFOLIST "XEN_SYSCTL_getdomaininfolist",
            XEN_SYSCTL_PHYSCAP_HVM "XEN_SYSCTL_PHYSCAP_hvm", XEN_SYSCTL_PHYSCAP_HAP "XEN_SYSCTL_PHYSCAP_hap",
            XEN_SYSCTL_PHYSCAP_GNTTAB_V1 "XEN_SYSCTL_PHYSCAP_gnttab_v1";
        vcpu:
            VCPUOP_INITIALISE "VCPUOP_initialise", VCPUOP_UP "VCPUOP_up", VCPUOP_DOWN "VCPUOP_down",
            VCPUOP_IS_UP "VCPUOP_is_up", VCPUOP_GET_RUNSTATE_INFO "VCPUOP_get_runstate_info",
            VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA "VCPUOP_register_runstate_memory_area",
            VCPUOP_SET_PERIODIC_TIMER "VCPUOP_set_periodic_timer",
            VCPUOP_STOP_PERIODIC_TIMER "VCPUOP_stop_periodic_timer",
            VCPUOP_SET_SINGLESHOT_TIMER "VCPUOP_set_singleshot_timer",
            VCPUOP_STOP_SINGLESHOT_TIMER "VCPUOP_stop_singleshot_timer",
            VCPUOP_REGISTER_VCPU_INFO "VCPUOP_register_vcpu_info", VCPUOP_SEND_NMI "VCPUOP_send_nmi",
            VCPUOP_GET_PHYSID "VCPUOP_get_physid",
            VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA "VCPUOP_register_vcpu_time_memory_area",
            VCPU_SSHOTTMR_FUTURE "VCPU_SSHOTTMR_future", VMASST_CMD_ENABLE "VMASST_CMD_enable",
            VMASST_CMD_DISABLE "VMASST_CMD_disable",
            VMASST_TYPE_RUNSTATE_UPDATE_FLAG "VMASST_TYPE_runstate_update_flag";
        blkif:
            BLKIF_OP_READ "BLKIF_OP_READ", BLKIF_OP_WRITE "BLKIF_OP_WRITE",
            BLKIF_OP_WRITE_BARRIER "BLKIF_OP_WRITE_BARRIER", BLKIF_OP_FLUSH_DISKCACHE "BLKIF_OP_FLUSH_DISKCACHE",
            BLKIF_OP_DISCARD "BLKIF_OP_DISCARD", BLKIF_OP_INDIRECT "BLKIF_OP_INDIRECT",
            BLKIF_MAX_SEGMENTS_PER_REQUEST "BLKIF_MAX_SEGMENTS_PER_REQUEST",
            BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST",
            BLKIF_DISCARD_SECURE "BLKIF_DISCARD_SECURE", BLKIF_RSP_OKAY "BLKIF_RSP_OKAY",
            BLKIF_RSP_ERROR "BLKIF_RSP_ERROR", BLKIF_RSP_EOPNOTSUPP "BLKIF_RSP_EOPNOTSUPP", VDISK_CDROM "VDISK_CDROM",
            VDISK_REMOVABLE "VDISK_REMOVABLE", VDISK_READONLY "VDISK_READONLY";
        netif:
            XEN_NETIF_MAX_TX_SIZE "XEN_NETIF_MAX_TX_SIZE", NETTXF_CSUM_BLANK "NETTXF_csum_blank",
            NETTXF_DATA_VALIDATED "NETTXF_data_validated", NETTXF_MORE_DATA "NETTXF_more_data",
            NETTXF_EXTRA_INFO "NETTXF_extra_info", NETRXF_DATA_VALIDATED "NETRXF_data_validated",
            NETRXF_CSUM_BLANK "NETRXF_csum_blank", NETRXF_MORE_DATA "NETRXF_more_data",
            NETRXF_EXTRA_INFO "NETRXF_extra_info", NETRXF_GSO_PREFIX "NETRXF_gso_prefix",
            XEN_NETIF_EXTRA_TYPE_GSO "XEN_NETIF_EXTRA_TYPE_GSO",
            XEN_NETIF_EXTRA_TYPE_MCAST_ADD "XEN_NETIF_EXTRA_TYPE_MCAST_ADD",
            XEN_NETIF_EXTRA_TYPE_MCAST_DEL "XEN_NETIF_EXTRA_TYPE_MCAST_DEL",
            XEN_NETIF_EXTRA_TYPE_HASH "XEN_NETIF_EXTRA_TYPE_HASH",
            XEN_NETIF_EXTRA_FLAG_MORE "XEN_NETIF_EXTRA_FLAG_MORE",
            XEN_NETIF_GSO_TYPE_TCPV4 "XEN_NETIF_GSO_TYPE_TCPV4", XEN_NETIF_GSO_TYPE_TCPV6 "XEN_NETIF_GSO_TYPE_TCPV6",
            NETIF_RSP_OKAY "NETIF_RSP_OKAY", NETIF_RSP_ERROR "NETIF_RSP_ERROR", NETIF_RSP_DROPPED "NETIF_RSP_DROPPED",
            NETIF_RSP_NULL "NETIF_RSP_NULL", XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS "XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS",
            XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS "XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS",
            XEN_NETIF_CTRL_TYPE_SET_HASH_KEY "XEN_NETIF_CTRL_TYPE_SET_HASH_KEY",
            XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE "XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE",
            XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE "XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE",
            XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING "XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING",
            XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM "XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM",
            XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE "XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE",
            XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING "XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING",
            XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING "XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING",
            XEN_NETIF_CTRL_STATUS_SUCCESS "XEN_NETIF_CTRL_STATUS_SUCCESS",
            XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED "XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED",
            XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER "XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER",
            XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW "XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW",
            XEN_NETIF_CTRL_HASH_ALGORITHM_NONE "XEN_NETIF_CTRL_HASH_ALGORITHM_NONE",
            XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ "XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ",
            XEN_NETIF_CTRL_HASH_TYPE_IPV4 "XEN_NETIF_CTRL_HASH_TYPE_IPV4",
            XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP "XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP",
            XEN_NETIF_CTRL_HASH_TYPE_IPV6 "XEN_NETIF_CTRL_HASH_TYPE_IPV6",
            XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP "XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP",
            XEN_NETIF_CTRLF_GREF_READONLY "XEN_NETIF_CTRLF_GREF_readonly";
        ring:
            HEADER "offsetof(struct blkif_sring, ring)";
        version:
            XENVER_VERSION "XENVER_version", XENVER_EXTRAVERSION "XENVER_extraversion",
            XENVER_COMPILE_INFO "XENVER_compile_info", XENVER_CAPABILITIES "XENVER_capabilities",
            XENVER_CHANGESET "XENVER_changeset", XENVER_PLATFORM_PARAMETERS "XENVER_platform_parameters",
            XENVER_GET_FEATURES "XENVER_get_features", XENVER_PAGESIZE "XENVER_pagesize",
            XENVER_GUEST_HANDLE "XENVER_guest_handle", XENVER_COMMANDLINE "XENVER_commandline",
            XENVER_BUILD_ID "XENVER_build_id", EXTRAVERSION_LEN "XEN_EXTRAVERSION_LEN",
            COMPILE_INFO_LEN "sizeof(struct xen_compile_info)", CAPABILITIES_INFO_LEN "XEN_CAPABILITIES_INFO_LEN",
            CHANGESET_INFO_LEN "XEN_CHANGESET_INFO_LEN", COMMANDLINE_LEN "sizeof(xen_commandline_t)",
            DOMAIN_HANDLE_LEN "sizeof(xen_domain_handle_t)",
            XENFEAT_WRITABLE_PAGE_TABLES "XENFEAT_writable_page_tables",
            XENFEAT_WRITABLE_DESCRIPTOR_TABLES "XENFEAT_writable_descriptor_tables",
            XENFEAT_AUTO_TRANSLATED_PHYSMAP "XENFEAT_auto_translated_physmap",
            XENFEAT_SUPERVISOR_MODE_KERNEL "XENFEAT_supervisor_mode_kernel",
            XENFEAT_PAE_PGDIR_ABOVE_4GB "XENFEAT_pae_pgdir_above_4gb",
            XENFEAT_MMU_PT_UPDATE_PRESERVE_AD "XENFEAT_mmu_pt_update_preserve_ad",
            XENFEAT_HIGHMEM_ASSIST "XENFEAT_highmem_assist",
            XENFEAT_GNTTAB_MAP_AVAIL_BITS "XENFEAT_gnttab_map_avail_bits",
            XENFEAT_HVM_CALLBACK_VECTOR "XENFEAT_hvm_callback_vector",
            XENFEAT_HVM_SAFE_PVCLOCK "XENFEAT_hvm_safe_pvclock", XENFEAT_HVM_PIRQS "XENFEAT_hvm_pirqs",
            XENFEAT_DOM0 "XENFEAT_dom0", XENFEAT_MEMORY_OP_VNODE_SUPPORTED "XENFEAT_memory_op_vnode_supported",
            XENFEAT_LINUX_RSDP_UNRESTRICTED "XENFEAT_linux_rsdp_unrestricted",
            XENFEAT_NOT_DIRECT_MAPPED "XENFEAT_not_direct_mapped", XENFEAT_DIRECT_MAPPED "XENFEAT_direct_mapped",
            XENFEAT_NR_SUBMAPS "XENFEAT_NR_SUBMAPS";
        xs_wire:
            XS_CONTROL "XS_CONTROL", XS_DIRECTORY "XS_DIRECTORY", XS_READ "XS_READ", XS_GET_PERMS "XS_GET_PERMS",
            XS_WATCH "XS_WATCH", XS_UNWATCH "XS_UNWATCH", XS_TRANSACTION_START "XS_TRANSACTION_START",
            XS_TRANSACTION_END "XS_TRANSACTION_END", XS_INTRODUCE "XS_INTRODUCE", XS_RELEASE "XS_RELEASE",
            XS_GET_DOMAIN_PATH "XS_GET_DOMAIN_PATH", XS_WRITE "XS_WRITE", XS_MKDIR "XS_MKDIR", XS_RM "XS_RM",
            XS_SET_PERMS "XS_SET_PERMS", XS_WATCH_EVENT "XS_WATCH_EVENT", XS_ERROR "XS_ERROR",
            XS_IS_DOMAIN_INTRODUCED "XS_IS_DOMAIN_INTRODUCED", XS_RESUME "XS_RESUME", XS_SET_TARGET "XS_SET_TARGET",
            XS_RESET_WATCHES "XS_RESET_WATCHES", XS_DIRECTORY_PART "XS_DIRECTORY_PART",
            PAYLOAD_MAX "XENSTORE_PAYLOAD_MAX", ABS_PATH_MAX "XENSTORE_ABS_PATH_MAX",
            REL_PATH_MAX "XENSTORE_REL_PATH_MAX", RING_SIZE "XENSTORE_RING_SIZE",
            RING_REQ "offsetof(struct xenstore_domain_interface, req)",
            RING_RSP "offsetof(struct xenstore_domain_interface, rsp)",
            RING_REQ_CONS "offsetof(struct xenstore_domain_interface, req_cons)",
            RING_REQ_PROD "offsetof(struct xenstore_domain_interface, req_prod)",
            RING_RSP_CONS "offsetof(struct xenstore_domain_interface, rsp_cons)",
            RING_RSP_PROD "offsetof(struct xenstore_domain_interface, rsp_prod)",
            RING_SERVER_FEATURES "offsetof(struct xenstore_domain_interface, server_features)",
            RING_CONNECTION "offsetof(struct xenstore_domain_interface, connection)",
            RING_ERROR "offsetof(struct xenstore_domain_interface, error)",
            RING_PAGE_USED "sizeof(struct xenstore_domain_interface)",
            RING_FEATURE_RECONNECTION "XENSTORE_SERVER_FEATURE_RECONNECTION",
            RING_FEATURE_ERROR "XENSTORE_SERVER_FEATURE_ERROR", RING_CONNECTED "XENSTORE_CONNECTED",
            RING_RECONNECT "XENSTORE_RECONNECT", RING_ERROR_NONE "XENSTORE_ERROR_NONE",
            RING_ERROR_COMM "XENSTORE_ERROR_COMM", RING_ERROR_RINGIDX "XENSTORE_ERROR_RINGIDX",
            RING_ERROR_PROTO "XENSTORE_ERROR_PROTO";
    }
    errnos! { rows
        EPERM ENOENT ESRCH EIO ENXIO E2BIG EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV EINVAL ENOSPC ERANGE
        ENOSYS ENODATA ETIME EOVERFLOW EOPNOTSUPP ENOTCONN
    }
    for (i, name) in xs_wire::ERRORS.into_iter().enumerate() {
        rows.push(Row { ours: name, c: format!("!strcmp(xsd_errors[{i}].errstring, \"{name}\")"), value: 1 });
    }
    for (ours, word) in [
        ("req_prod", ring::REQ_PROD),
        ("req_event", ring::REQ_EVENT),
        ("rsp_prod", ring::RSP_PROD),
        ("rsp_event", ring::RSP_EVENT),
    ] {
        rows.push(Row { ours, c: format!("offsetof(struct netif_tx_sring, {ours})"), value: (4 * word).bits() });
    }
    for (ours, bytes, entry) in
        [("blkif", 112, 32), ("netif_tx", 12, 256), ("netif_rx", 8, 256), ("xen_netif_ctrl", 16, 128)]
    {
        rows.push(Row { ours, c: format!("sizeof(union {ours}_sring_entry)"), value: bytes });
        let slots = ring::entries_in(guest_abi::PAGE_SIZE, guest_abi::num::to_usize(bytes)).expect("there is room");
        assert_eq!(slots, entry, "{ours}");
        rows.push(Row { ours, c: format!("__RING_SIZE((struct {ours}_sring *)0, 4096)"), value: slots.bits() });
    }
    use xenbus::State;
    for (state, c) in [
        (State::Unknown, "XenbusStateUnknown"),
        (State::Initialising, "XenbusStateInitialising"),
        (State::InitWait, "XenbusStateInitWait"),
        (State::Initialised, "XenbusStateInitialised"),
        (State::Connected, "XenbusStateConnected"),
        (State::Closing, "XenbusStateClosing"),
        (State::Closed, "XenbusStateClosed"),
        (State::Reconfiguring, "XenbusStateReconfiguring"),
        (State::Reconfigured, "XenbusStateReconfigured"),
    ] {
        assert_eq!(State::parse(state.as_str().as_bytes()), Some(state));
        rows.push(Row { ours: "State", c: c.to_owned(), value: (state as u8).bits() });
    }
    rows.push(Row {
        ours: "number of errors",
        c: "sizeof(xsd_errors) / sizeof(xsd_errors[0])".to_owned(),
        value: xs_wire::ERRORS.len().bits(),
    });
}

fn c_program(rows: &[Row]) -> String {
    // The tools' view of the headers is the one at the newest interface version.
    let mut text = String::from(
        "#define __XEN_TOOLS__ 1\n#include <errno.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n",
    );
    for include in INCLUDES {
        text += &format!("#include <xen/{include}>\n");
    }
    text += "int main(void) {\n";
    for row in rows {
        text += &format!("    printf(\"%llu\\n\", (unsigned long long)({}));\n", row.c);
    }
    text + "    return 0;\n}\n"
}

/// Compiles and runs the program; its output.
fn run(program: &str) -> String {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = dir.join("layout.c");
    let binary = dir.join("layout");
    std::fs::write(&source, program).expect("the target directory is writable");
    let gcc = Command::new("cc").arg("-o").arg(&binary).arg(&source).output().expect("the compiler starts");
    assert!(gcc.status.success(), "{}", String::from_utf8_lossy(&gcc.stderr));
    let output = Command::new(&binary).output().expect("the program starts");
    String::from_utf8(output.stdout).expect("the program prints numbers")
}

#[test]
fn sizes_offsets_and_constants_are_those_of_the_public_headers() {
    if !Path::new("/usr/include/xen/xen.h").exists() || Command::new("cc").arg("--version").output().is_err() {
        eprintln!("skipped: needs a C compiler and the headers of libxen-dev");
        return;
    }
    let mut rows = Vec::new();
    struct_rows(&mut rows);
    const_rows(&mut rows);
    let output = run(&c_program(&rows));
    let values: Vec<u64> = output.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(values.len(), rows.len());
    let wrong: Vec<String> = rows
        .iter()
        .zip(&values)
        .filter(|(row, value)| row.value != **value)
        .map(|(row, value)| format!("{}: ours {:#x}, {} is {value:#x}", row.ours, row.value, row.c))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
